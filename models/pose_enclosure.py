"""What a picture's pixels may become under every rotation and translation of a range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.enclosure import Enclosure
from models.threat import Box

# A cell in which a pixel's source crosses more unit squares than this gets no better bounds than the box.
SQUARES = 5
BORDER = 2


@dataclass(frozen=True)
class _Range:
    """Bounds of a quantity, entry by entry."""

    low: Tensor
    high: Tensor

    def __add__(self, other: _Range) -> _Range:
        return _Range(self.low + other.low, self.high + other.high)

    def __neg__(self) -> _Range:
        return _Range(-self.high, -self.low)

    def __mul__(self, other: _Range) -> _Range:
        products = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return _Range(torch.stack(products).amin(0), torch.stack(products).amax(0))

    @property
    def most(self) -> Tensor:
        """The largest absolute value."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def near(self, middle: Tensor, reach: Tensor) -> _Range:
        """The part that also lies in middle -+ reach."""
        return _Range(torch.maximum(self.low, middle - reach), torch.minimum(self.high, middle + reach))

    def channels(self) -> _Range:
        """(n, h, w) as (n, 1, h, w)."""
        return _Range(self.low[:, None], self.high[:, None])


def _cosine(angle: _Range) -> _Range:
    """cos over a range of angles in radians."""

    def holds(peak: float) -> Tensor:
        turns = ((angle.low - peak) / (2 * math.pi)).ceil()
        return turns * 2 * math.pi + peak <= angle.high

    least = torch.minimum(angle.low.cos(), angle.high.cos())
    most = torch.maximum(angle.low.cos(), angle.high.cos())
    return _Range(torch.where(holds(math.pi), -1.0, least), torch.where(holds(0.0), 1.0, most))


@dataclass(frozen=True)
class _Source:
    """Where each pixel comes from, in pixels from the centre: rows down and columns right (n, h, w).

    middle: at the cell's centre; the ranges hold it over the cell and what x's precision rounds;
    cos and sin (n, 1, 1) of the angle.
    """

    down: _Range
    right: _Range
    middle: tuple[Tensor, Tensor]
    cos: _Range
    sin: _Range

    @staticmethod
    def of(x: Tensor, low: Tensor, high: Tensor, rounding: float) -> _Source:
        """For cells of (angle in radians, down, right), low and high (n, 3)."""
        side = [torch.arange(size, device=x.device, dtype=torch.float64) for size in x.shape[2:]]
        rows, columns = (part - (len(part) - 1) / 2 for part in side)
        rows, columns = rows[None, :, None], columns[None, None, :]
        angle, shift, slide = (
            _Range(a[:, None, None], b[:, None, None])
            for a, b in zip(low.unbind(1), high.unbind(1), strict=True)
        )
        cos, sin = _cosine(angle), _cosine(_Range(angle.low - math.pi / 2, angle.high - math.pi / 2))
        down = _Range(rows - shift.high, rows - shift.low)
        right = _Range(columns - slide.high, columns - slide.low)
        turned, fallen = cos * right + -(sin * down), sin * right + cos * down
        turn, move, glide = ((part.low + part.high) / 2 for part in (angle, shift, slide))
        half, falling, sliding = ((part.high - part.low) / 2 for part in (angle, shift, slide))
        middle_right = turn.cos() * (columns - glide) - turn.sin() * (rows - move)
        middle_down = turn.sin() * (columns - glide) + turn.cos() * (rows - move)
        # The mean value theorem again: the coordinates' own slopes over the cell.
        reach_right = fallen.most * half + cos.most * sliding + sin.most * falling + rounding
        reach_down = turned.most * half + sin.most * sliding + cos.most * falling + rounding
        slack = _Range(torch.tensor(-rounding).to(rows), torch.tensor(rounding).to(rows))
        return _Source(
            (fallen + slack).near(middle_down, reach_down),
            (turned + slack).near(middle_right, reach_right),
            (middle_down, middle_right),
            cos,
            sin,
        )


def enclose_warp(x: Tensor, low: Tensor, high: Tensor, box: Box) -> Enclosure:
    """A set that holds `models.poses.warp` of images x (n, c, h, w) at scale 1, for all moves of a cell each.

    low, high (n, 3): angle in degrees, then the shifts down and to the right, in pixels. Each pixel v is
    affine in the move up to a remainder: v(m) - v(m0) = sum_i s_i (m_i - m0_i) with slopes s_i in the range
    of dv/dm_i over the cell (mean value theorem; v is piecewise smooth), whose middle makes the generator
    and whose half width the slack. The ranges come from the source's coordinates over the cell and from
    bilinear interpolation's slopes on every unit square that they cross; what rounding in x's precision adds
    is in the slack. Cells that cross too many squares get the whole box.
    Source: after Balunovic, Baader, Singh, Gehr, Vechev 2019, NeurIPS, section 4: linear bounds of
    every pixel in the parameters, with a mean value form for their sampled and refined planes.
    """
    start, end = (torch.cat([torch.deg2rad(m[:, :1].double()), m[:, 1:].double()], 1) for m in (low, high))
    precision = max(float(torch.finfo(x.dtype).eps), 1e-12)
    rounding = 8 * precision * (x.shape[2] + x.shape[3])
    source = _Source.of(x, start, end, rounding)
    picture = functional.pad(x.double() - box.lower, [BORDER] * 4)
    rows, columns = (_placed(part, side) for part, side in zip(
        (source.down, source.right), picture.shape[2:], strict=True))  # fmt: skip
    crossed = torch.maximum(_squares(rows), _squares(columns))
    near = crossed <= SQUARES
    count = int(crossed[near].max()) if bool(near.any()) else 1
    across = _slopes(picture, rows, columns, count)
    along = _slopes(picture.transpose(2, 3), columns, rows, count)
    down, right = source.down.channels(), source.right.channels()
    cos, sin = source.cos.channels(), source.sin.channels()
    slopes = (
        along * right + -(across * down),
        across * sin + -(along * cos),
        -(across * cos) + -(along * sin),
    )
    reach = (end - start) / 2
    scale = [part[:, None, None, None] for part in reach.unbind(1)]
    steps = torch.stack([(s.high + s.low) / 2 * r for s, r in zip(slopes, scale, strict=True)], 1)
    rest = torch.stack([(s.high - s.low) / 2 * r for s, r in zip(slopes, scale, strict=True)], 1)
    # The operator's own rounding: a source that is off by `rounding`, and a sum of four products.
    slack = rounding * (across.most + along.most) + 8 * precision * (box.width + abs(box.lower))
    return _fallback(x, box, near, reach, Enclosure(
        centre=box.lower + _middle(picture, source.middle),
        generators=steps,
        slack=slack + rest.sum(1),
        effect=(steps.abs() + rest).flatten(2).sum(2),
    ))  # fmt: skip


def _fallback(x: Tensor, box: Box, near: Tensor, reach: Tensor, found: Enclosure) -> Enclosure:
    """`found` where `near` (n,), else the box; either within the box, widened by what rounding adds."""
    known, margin = near[:, None, None, None], float(found.slack.detach().amin())
    arms = torch.tensor([(x.shape[2] + x.shape[3]) / 4, 1.0, 1.0], dtype=torch.float64, device=x.device)
    return Enclosure(
        box=Box(box.lower - margin, box.upper + margin),
        centre=torch.where(known, found.centre, (box.lower + box.upper) / 2),
        generators=torch.where(known[:, None], found.generators, 0.0),
        slack=torch.where(known, found.slack, box.width / 2 + margin),
        effect=torch.where(near[:, None], found.effect, reach * arms),
    )


def _placed(source: _Range, side: int) -> _Range:
    """Coordinates in the picture with its border: what lies further out is as black as its rim."""
    return _Range(_place(source.low, side), _place(source.high, side))


def _place(coordinate: Tensor, side: int) -> Tensor:
    return (coordinate + (side - 1) / 2).clamp(0.5, side - 1.5)


def _squares(places: _Range) -> Tensor:
    """How many unit squares the widest range of a cell crosses: (n,)."""
    return (places.high.floor() - places.low.floor()).flatten(1).amax(1) + 1


def _read(picture: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The entries of pictures (n, c, r, s) at whole rows and columns (n, h, w): (n, c, h, w)."""
    places = (row * picture.shape[3] + column).long().flatten(1)[:, None].expand(-1, picture.shape[1], -1)
    return picture.flatten(2).gather(2, places).unflatten(2, row.shape[1:])


def _between(picture: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Pictures at whole columns, and at any row between two whole ones."""
    first = row.floor()
    share = (row - first)[:, None]
    return (1 - share) * _read(picture, first, column) + share * _read(picture, first + 1, column)


def _middle(picture: Tensor, source: tuple[Tensor, Tensor]) -> Tensor:
    row, column = (_place(part, side) for part, side in zip(source, picture.shape[2:], strict=True))
    first = column.floor()
    share = (column - first)[:, None]
    return (1 - share) * _between(picture, row, first) + share * _between(picture, row, first + 1)


def _slopes(picture: Tensor, rows: _Range, columns: _Range, count: int) -> _Range:
    """The range of the derivative along the columns' direction over ranges of at most `count` squares.

    In one square it is affine in the row and free of the column: its extremes lie at the ends of the rows'
    range, and at whole rows inside it.
    """
    steps = picture[..., 1:] - picture[..., :-1]
    found: list[Tensor] = []
    for square in range(count):
        column = torch.minimum(columns.low.floor() + square, columns.high.floor())
        ends = _between(steps, rows.low, column), _between(steps, rows.high, column)
        found += ends
        for inner in range(1, count):
            row = rows.low.floor() + inner
            inside = (row <= rows.high)[:, None]
            found.append(
                torch.where(inside, _read(steps, torch.minimum(row, rows.high.floor()), column), ends[0])
            )
    values = torch.stack(found)
    return _Range(values.amin(0), values.amax(0))
