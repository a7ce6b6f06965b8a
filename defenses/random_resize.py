"""Another size at another place in every pass: the adversary does not know which image the network sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.inputs import InputDefense, register_input_defense
from models.architecture import Architecture
from models.errors import UserError
from models.randomness import Randomness
from models.smoothed import content_index

# Images whose looks are remembered: more than an attack asks about between two looks at the same one.
REMEMBERED = 1 << 20


class Resized(nn.Module):
    """Shrinks each image to round(u h) x round(u w), u uniform in [smallest, 1], at a random place in zeros.

    Bilinear. The size and place of the k-th look at an image are drawn from its content and k: another look
    is another draw, and neither the batch nor what else was asked matters. Points that differ in their last
    bits are different images. `eval()` forgets all looks, so that each judge begins anew.
    """

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest
        self._looks: dict[int, int] = {}

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, and forgets all looks."""
        self._looks.clear()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        draws = Randomness(0).child("resize").uniform(self._looked(x), (3,))
        share, down, across = draws.unbind(1)
        share = self.smallest + (1 - self.smallest) * share
        rows, inside_rows = _sources(x.shape[2], share, down)
        columns, inside_columns = _sources(x.shape[3], share, across)
        grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), -1)
        shrunk = functional.grid_sample(
            x, grid.to(x), mode="bilinear", padding_mode="border", align_corners=False
        )
        return shrunk * (inside_rows[:, None, :, None] & inside_columns[:, None, None, :])

    def _looked(self, x: Tensor) -> Tensor:
        """A number (n,) for this look at each image: of its content, and of how often it was seen."""
        contents = content_index(x)
        counts = []
        for content in contents.tolist():
            counts.append(self._looks.pop(content, 0))
            self._looks[content] = counts[-1] + 1
        while len(self._looks) > REMEMBERED:
            del self._looks[next(iter(self._looks))]
        return contents + (0x9E3779B97F4A7C15 >> 1) * torch.tensor(counts, device=x.device)


def _sources(size: int, share: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Where along an axis each of `size` output pixels is read, in [-1, 1], and whether the image is there.

    share, place (n,) in [0, 1]; both results (n, size).
    """
    length = (share * size).round().clamp(min=1)
    offset = (place * (size - length + 1)).floor().clamp(max=size - length)
    pixel = torch.arange(size, device=share.device) - offset[:, None]
    return (2 * pixel + 1) / length[:, None] - 1, (pixel >= 0) & (pixel < length[:, None])


@register_input_defense("random-resize")
@dataclass(frozen=True, kw_only=True)
class RandomResize(InputDefense):
    """Shows the network each image at a random size and place, anew in every pass.

    The image is shrunk to a share of at least `smallest` and padded with zeros to its own size, where the
    source enlarges it and needs a network for larger images. Declared stochastic: adversaries average
    gradients over passes (EOT), and a success is judged over several. Raises UserError for smallest
    outside (0, 1]. Source: Xie, Wang, Zhang, Ren, Yuille 2018, 1711.01991.
    """

    paper = "Xie, Wang, Zhang, Ren, Yuille 2018, 1711.01991"
    stochastic = True

    smallest: float = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.smallest <= 1:
            raise UserError(f"random-resize needs smallest between 0 and 1, not {self.smallest:g}")

    def front(self, architecture: Architecture) -> nn.Module:
        return Resized(self.smallest)

    def refuses(self, architecture: Architecture) -> str | None:
        return None if len(architecture.input_shape) == 3 else "its inputs are no images"
