"""Changes of brightness and contrast, as a threat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models.enclosure import Enclosure
from models.norms import LIGHTS
from models.threat import per_sample
from models.transformation import Transformation


@dataclass(frozen=True)
class Lighting(Transformation):
    """{clip(black + (1 + c) (x - black) + b width)}, black and width those of the box; inputs of any shape.

    "lighting": |b| <= eps and |c| <= eps; "brightness" and "contrast": one without the other. A move is
    (b, c), and its size is the larger of the two. Source: Pei, Cao, Yang, Jana 2017, 1712.01785, section 3.
    """

    clips: ClassVar[bool] = True

    def parameters(self, x: Tensor) -> int:
        return 2

    def size(self, move: Tensor) -> Tensor:
        return move.double().abs().amax(1)

    def limits(self) -> Tensor:
        return self.radius * torch.tensor(LIGHTS[self.norm], dtype=torch.float64).sign()

    def carry_out(self, x: Tensor, move: Tensor, index: Tensor) -> Tensor:
        bright, gain = (per_sample(part.to(x), x) for part in self._parts(move))
        black = self.box.lower
        return self.box.clamp(black + ((1 + gain) * (x - black) + bright * self.box.width))

    def _parts(self, move: Tensor) -> tuple[Tensor, Tensor]:
        bright, contrast = LIGHTS[self.norm]
        return bright * move[:, 0], contrast * move[:, 1]

    def enclose(self, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
        """Exact but for rounding: the map is affine in (b, c) before it clips."""
        exact, rounding = x.double() - self.box.lower, float(torch.finfo(x.dtype).eps)
        (bright, gain), reach = self._parts((low + high) / 2), self._parts((high - low) / 2)
        steps = torch.stack(
            [
                per_sample(reach[0], x) * self.box.width * torch.ones_like(exact),
                per_sample(reach[1], x) * exact,
            ],
            1,
        )
        middle = (1 + per_sample(gain, x)) * exact + per_sample(bright, x) * self.box.width
        # What is exactly black stays so without brightness: nothing is rounded there.
        widest = (1 + per_sample(gain.abs() + reach[1], x)) * exact.abs()
        widest = widest + per_sample(bright.abs() + reach[0], x) * self.box.width
        slack = 4 * rounding * (widest + abs(self.box.lower) * (widest > 0))
        return Enclosure(
            centre=self.box.lower + middle,
            generators=steps,
            slack=slack,
            effect=steps.abs().flatten(2).sum(2),
        )
