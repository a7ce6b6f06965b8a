"""Gated linear units: one half of the values, each times the sigmoid of its fellow in the other half."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from certify.rules.extremes import Stack
from certify.rules.placement import Placement
from certify.rules.product import Product
from certify.rules.sigmoidal import Sigmoidal
from certify.rules.table import Call, Step, rule
from models.errors import NotApplicable


@dataclass(frozen=True)
class Half(Placement):
    """The first or the second half of the values along a dimension after the samples'."""

    dim: int
    second: bool

    def place(self, values: Tensor, fill: float) -> Tensor:
        dim = self.dim % values.dim()
        if dim == 0 or values.shape[dim] % 2:
            raise NotApplicable(
                f"values of shape {tuple(values.shape[1:])} are halved along dimension {self.dim}: the "
                "certificates need an even size after the samples'"
            )
        return values.chunk(2, dim)[int(self.second)]


@rule(nn.GLU, F.glu)
def glu(call: Call) -> list[Step]:
    """a sigmoid(b) for the halves a and b."""
    given = call.bind("input", dim=-1)
    value = call.value(given["input"])
    dim = call.module.dim if isinstance(call.module, nn.GLU) else given["dim"]
    if not isinstance(dim, int):
        call.refuse("has a dimension that the certificates cannot read: use a number")
    return [
        (Half(dim, False), (value,)),
        ((Half(dim, True), Sigmoidal()), (value,)),
        ((Stack(), Product()), (-2, -1)),
    ]
