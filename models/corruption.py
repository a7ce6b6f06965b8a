"""Common corruptions as a threat: a family and a severity, and nothing left to the adversary beside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import models.corruptions
from models.corruptions.base import FAMILIES, Family
from models.discover import import_modules
from models.errors import NotApplicable
from models.norms import SEVERITIES
from models.randomness import Randomness
from models.transformation import Transformation, need_images

import_modules(models.corruptions.__name__)

CHANCE = Randomness(0).child("corruptions")
"""One seed for everybody: a corrupted data set is the same in every run."""


@dataclass(frozen=True)
class Corruption(Transformation):
    """Every common corruption of severity at most eps, 1 to 5; images (n, c, h, w).

    A move is (number of the family in `families()`, severity), both whole numbers, severity 0 the identity;
    its size is the severity. What a family draws at random depends on the image's index alone.
    Source: Hendrycks, Dietterich 2019, 1903.12261; see models.corruptions.base for what differs.
    """

    def parameters(self, x: Tensor) -> int:
        return 2

    def size(self, move: Tensor) -> Tensor:
        family, severity = move.double().unbind(1)
        whole = (move == move.round()).all(1) & (family >= 0) & (family < len(FAMILIES))
        return torch.where(whole & (severity >= 0) & (severity <= SEVERITIES), severity, torch.inf)

    def carry_out(self, x: Tensor, move: Tensor, index: Tensor) -> Tensor:
        need_images(x, "common corruptions")
        result, names = x.clone(), families()
        for number, severity in move.unique(dim=0).long().tolist():
            if severity:
                mine = ((move[:, 0] == number) & (move[:, 1] == severity)).nonzero()[:, 0]
                result[mine] = self.corrupted(x[mine], names[number], severity, index[mine])
        return result

    def corrupted(self, x: Tensor, name: str, severity: int, index: Tensor) -> Tensor:
        """Images x (n, c, h, w) under the family `name`; raises NotApplicable for its number of channels."""
        family: Family = FAMILIES[name]
        if not fits(name, x):
            raise NotApplicable(f"'{name}' needs {family.channels} channels, the images have {x.shape[1]}")
        unit = (x - self.box.lower) / self.box.width
        found = family.corrupt(unit, severity, index, CHANCE.child(name, severity))
        return self.box.clamp(self.box.lower + self.box.width * found.to(x))


def families() -> list[str]:
    """The names of all families, in order."""
    return FAMILIES.names()


def fits(name: str, x: Tensor) -> bool:
    """Whether a family applies to images x (n, c, h, w)."""
    return FAMILIES[name].channels in (None, x.shape[1])
