"""Input sets whose coordinates move along curves: a pixel, and what neurons make of it alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.input_set import InputSet


@dataclass(frozen=True)
class Polylines:
    """p curves in k coordinates each: coordinates (p, k) and the corners (p, k, c) of the broken lines."""

    coordinates: Tensor
    corners: Tensor

    def values(self, rows: Tensor) -> Tensor:
        """What linear functions rows (b, d) of all coordinates add at each corner: (b, p, c)."""
        return torch.bmm(rows[:, self.coordinates].transpose(0, 1), self.corners).transpose(0, 1)

    def least(self, rows: Tensor, x: Tensor) -> Tensor:
        """The sums (b,) of the least values on each curve; where they lie is written to x (b, d)."""
        value, place = self.values(rows).min(2)
        curves = torch.arange(len(self.corners), device=rows.device)
        x[:, self.coordinates.flatten()] = self.corners.mT[curves, place].flatten(1)
        return value.sum(1)

    def standard(self, middle: Tensor, radius: Tensor) -> Polylines:
        """The same in single precision, where coordinates (d,) are moved and scaled to [-1, 1]."""
        middle, radius = (part[self.coordinates][..., None] for part in (middle, radius))
        corners = (self.corners - middle) / radius.masked_fill(radius == 0, 1.0)
        return Polylines(self.coordinates, corners.float())


@dataclass(frozen=True)
class Corners(InputSet):
    """{x : each group of coordinates on its own broken line}; the bounds and the centre are the box's."""

    lines: tuple[Polylines, ...] = ()

    curved = True

    def least(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The least values (k,) of rows . x, rows (k, d), and the corners (k, d) where they are."""
        x = torch.empty_like(rows)
        value = rows.new_zeros(len(rows))
        for part in self.lines:
            value = value + part.least(rows, x)
        return value, x

    def standard(self) -> InputSet:
        """The same in single precision with each coordinate's ends moved to -1 and 1."""
        middle, radius = self.middle_and_radius()
        end = torch.ones_like(middle, dtype=torch.float32)
        return Corners(-end, end, 0 * end, lines=tuple(part.standard(middle, radius) for part in self.lines))


@dataclass(frozen=True, kw_only=True)
class Curves(Corners):
    """Inputs (d,) of a box followed by functions of single ones: input places[i] makes a_i of itself.

    z = slope x + constant and a = max(z, leak z) for each of the k functions; the set's points are (d + k,).
    Built by `over`; linf only.
    """

    places: Tensor
    slope: Tensor
    constant: Tensor
    leak: Tensor

    @staticmethod
    def over(box: InputSet, places: Tensor, slope: Tensor, constant: Tensor, leak: Tensor) -> Curves:
        """The curves that the functions slope, constant, leak (k,) of inputs places (k,) draw over a box."""
        readers = torch.bincount(places, minlength=len(box.lower))
        order = places.argsort(stable=True)
        begin = readers.cumsum(0) - readers
        lines = list[Polylines]()
        for count in readers.unique().tolist():
            inputs = (readers == count).nonzero()[:, 0]
            own = order[begin[inputs][:, None] + torch.arange(count)]
            turns = -constant[own] / slope[own]
            low, high = box.lower[inputs, None], box.upper[inputs, None]
            x = torch.cat([low, high, torch.minimum(torch.maximum(turns, low), high)], 1)[:, None]
            z = slope[own][..., None] * x + constant[own][..., None]
            a = torch.where(z > 0, z, leak[own][..., None] * z)
            coordinates = torch.cat([inputs[:, None], own + len(box.lower)], 1)
            lines.append(Polylines(coordinates, torch.cat([x, a], 1)))
        lower, upper, centre = box.lower.new_empty(3, len(box.lower) + len(places))
        for part in lines:
            spots = part.coordinates.flatten()
            lower[spots], upper[spots] = part.corners.amin(2).flatten(), part.corners.amax(2).flatten()
        found = Curves(
            lower, upper, centre, lines=tuple(lines), places=places, slope=slope, constant=constant, leak=leak
        )
        centre.copy_(found.along(box.centre[None])[0])
        return found

    @property
    def size(self) -> int:
        """The number of inputs, d."""
        return len(self.lower) - len(self.places)

    def along(self, inputs: Tensor) -> Tensor:
        """The set's points (b, d + k) at inputs (b, d)."""
        z = inputs[:, self.places] * self.slope + self.constant
        return torch.cat([inputs, torch.where(z > 0, z, self.leak * z)], 1)

    def project(self, points: Tensor) -> Tensor:
        """The points at the inputs of `points` (b, d + k), clipped to their box."""
        inputs = torch.minimum(points, self.upper).maximum(self.lower)[:, : self.size]
        return self.along(inputs)

    def steepest(self, rows: Tensor, x: Tensor) -> Tensor:
        """A direction (b, d + k) of the inputs in which rows . x falls at x, as long as half the box."""
        z = x[:, self.places] * self.slope + self.constant
        through = rows[:, self.size :] * self.slope * torch.where(z > 0, 1.0, self.leak)
        fall = rows[:, : self.size].index_add(1, self.places, through)
        _, radius = self.middle_and_radius()
        return torch.cat([-fall.sign() * radius[: self.size], torch.zeros_like(through)], 1)
