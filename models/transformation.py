"""Threats that no norm measures: the adversary chooses the parameters of a stated map of the input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from models.enclosure import Enclosure
from models.eps import parse_eps
from models.errors import NotApplicable, UserError
from models.norms import check_size
from models.threat import ThreatModel, per_sample


@dataclass(frozen=True)
class Transformation(ThreatModel, ABC):
    """{t(x, m) : size(m) <= eps} for a map t with parameters m, a row of numbers a sample.

    An attack on such a threat proposes rows m (n, parameters), not points, and whoever judges carries them
    out: no point has to be traced back to its parameters. m = 0 is the identity, of size 0. Raises
    UserError for an eps that has no meaning for the map. clips: what `enclose` holds becomes t(x, m) only
    when it is clipped to the box.
    """

    clips: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", parse_eps(self.eps))
        check_size(self.norm, self.eps)

    def at(self, eps: float | None) -> Transformation:
        return type(self)(self.norm, eps, self.box)

    @abstractmethod
    def parameters(self, x: Tensor) -> int:
        """How many numbers a move of each input x (n, ...) is; raises UserError where it can have none."""

    @abstractmethod
    def size(self, move: Tensor) -> Tensor:
        """The least eps at which the moves (n, parameters) are allowed, infinite for none: (n,) float64."""

    @abstractmethod
    def carry_out(self, x: Tensor, move: Tensor, index: Tensor) -> Tensor:
        """The moved inputs (n, ...) inside the box; index (n,) names what a move leaves to chance."""

    def limits(self) -> Tensor:
        """What bounds each parameter of a legal move (parameters,) float64; 0 for one that changes nothing.

        Raises NotApplicable for a map whose moves are no box.
        """
        raise NotApplicable(
            f"the moves of '{self.norm}' are no box of numbers: nothing can be proved of them"
        )

    def enclose(self, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
        """A set that holds t(x, m), and `carry_out` of it in x's precision, for all low <= m <= high.

        low, high (n, parameters): one cell of moves for each of x (n, ...). Where the map `clips`, the set
        holds what t is before. Raises NotApplicable where nobody knows one.
        """
        raise NotApplicable(f"nothing is known of '{self.norm}' between one move and the next")

    def settled(self, x: Tensor, move: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The proposals (n, parameters) carried out: moves, points (n, ...), sizes (n,), legal (n,).

        An illegal move counts as none.
        """
        parameters = self.parameters(x)
        if move.shape != (len(x), parameters):
            raise UserError(
                f"a move under '{self.norm}' is a row of {parameters} numbers, not of shape "
                f"{tuple(move.shape[1:])}"
            )
        size = self.size(move)
        legal = torch.isfinite(move).all(1) & (size <= self.radius)
        move = torch.where(legal[:, None], move, torch.zeros_like(move))
        point = self.carry_out(x, move, index)
        inside = self.box.contains(point)
        point = torch.where(per_sample(inside, x), point, x)
        return move, point, torch.where(legal & inside, size, 0.0), legal & inside


def need_images(x: Tensor, what: str) -> None:
    """Raises UserError where inputs are not images (n, c, h, w)."""
    if x.dim() != 4:
        raise UserError(f"{what} need images (n, c, h, w), not inputs of shape {tuple(x.shape)}")
