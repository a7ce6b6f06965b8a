"""The median of each pixel's neighbourhood: a lone pixel that was moved far is outvoted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from defenses.inputs import InputDefense, register_input_defense
from models.architecture import Architecture
from models.errors import UserError


class MedianFiltered(nn.Module):
    """The median of the size x size pixels around each one, in each channel; the border is reflected."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        reach = self.size // 2
        around = functional.pad(x, (reach, reach, reach, reach), mode="reflect")
        windows = around.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(-2).median(-1).values


@register_input_defense("median")
@dataclass(frozen=True, kw_only=True)
class Median(InputDefense):
    """Replaces each pixel by the median of the `size` x `size` pixels around it.

    The gradient is that of the pixel which is the median: right almost everywhere, so adversaries follow it.
    Raises UserError for a size that is not 3, 5, 7, ...; refuses images that are not larger than half of it.
    Source: Xu, Evans, Qi 2018, 1704.01155 (median smoothing).
    """

    paper = "Xu, Evans, Qi 2018, 1704.01155"

    size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 3 or self.size % 2 == 0:
            raise UserError(f"median needs an odd size of at least 3, not {self.size}")

    def front(self, architecture: Architecture) -> nn.Module:
        return MedianFiltered(self.size)

    def refuses(self, architecture: Architecture) -> str | None:
        shape = architecture.input_shape
        fits = len(shape) == 3 and min(shape[1:]) > self.size // 2
        return None if fits else f"its inputs are no images larger than {self.size // 2} pixels"
