"""Groups of entries of an affine function that read one input each, all alike, but for crumbs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from certify.rivals import Rivals
from certify.rules.linear import Linear
from certify.windows import Windows

# What a group's entries read beside one input each may move them by such a part of what that input does.
CRUMBS = 3e-2

# Groups that move by less than such a part of what others do are no functions of any input, but crumbs.
SMALL = 1e-2

# The part of the groups that have to be of this kind.
MOST = 0.5

# The slopes of a group's entries may differ by such a part, which is rounding.
SAME = 1e-12

# Groups that are looked at first.
FIRST = 64


@dataclass(frozen=True)
class Singles:
    """Entries (k,) or (m, k) of an affine function of a box, each with the input that moves it most.

    An entry is slope (x[place] - the middle of that input's range) + middle, up to `crumbs`; `moves` is what
    the one input adds at most.
    """

    place: Tensor
    slope: Tensor
    middle: Tensor
    moves: Tensor
    crumbs: Tensor

    def at(self, places: Tensor) -> Singles:
        """Some of the entries, with repeats."""
        return Singles(*(getattr(self, part.name)[places] for part in fields(self)))


@dataclass(frozen=True)
class Shared:
    """Groups (s,) that are slope u[keys[key]].max() + constant, up to `crumbs`.

    u are the d inputs and a zero, which is what padding adds, and then their negatives. keys (m, k) are
    places among these 2 (d + 1); one may stand in a column more than once.
    """

    groups: Tensor
    keys: Tensor
    key: Tensor
    slope: Tensor
    constant: Tensor
    crumbs: Tensor


@dataclass(frozen=True)
class Entries:
    """The entries of an affine node `source`, by their flat places in a sample."""

    windows: Windows
    source: int

    def rows(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (k, w) over places (k, w) of the inputs, and constants (k,)."""
        shape = self.windows.graph.shapes(self.windows.x)[self.source]
        where = torch.stack(torch.unravel_index(places, shape), 1)
        return self.windows.rows(torch.cat([torch.zeros_like(where[:, :1]), where], 1))

    def box(self) -> tuple[Tensor, Tensor]:
        """The middle (d,) of the inputs' box, and half its widths."""
        lower, upper = (end.flatten() for end in self.windows.threat.bounds(self.windows.x))
        return (upper + lower) / 2, (upper - lower) / 2

    def singles(self, places: Tensor) -> Singles:
        """The entries (k,) as functions of the one input that moves each most."""
        rows, seen, constant = self.rows(places)
        middle, radius = self.box()
        # Inputs that cannot move count a little, so that a group may read one of them as it reads others.
        own = (rows.abs() * radius.clamp(min=SMALL * float(radius.amax()))[seen]).argmax(1, keepdim=True)
        place, slope = seen.gather(1, own)[:, 0], rows.gather(1, own)[:, 0]
        moves = slope.abs() * radius[place]
        crumbs = (rows.abs() * radius[seen]).sum(1) - moves
        return Singles(place, slope, constant + (rows * middle[seen]).sum(1), moves, crumbs)

    def layer(self, places: Tensor) -> Linear:
        """The entries (k,) as a layer over the flat inputs."""
        rows, seen, constant = self.rows(places)
        weight = rows.new_zeros(len(rows), self.windows.x[0].numel()).scatter_add(1, seen, rows)
        return Linear(lambda: weight, lambda: constant)


def shared_groups(of: Entries, some: Rivals) -> Shared | None:
    """The groups whose entries read one input each in the same way; None where these are few."""
    groups, size = some.places.shape[1], of.windows.x[0].numel()
    step = max(1, groups // FIRST)
    every = torch.arange(groups, device=of.windows.x.device)
    for chosen in (every[::step], every):
        places, inverse = filled(some, chosen).unique(return_inverse=True)
        found = _with_padding(of.singles(places).at(inverse), size)
        constant = found.middle - found.slope * pad(of.box()[0], (0, 1))[found.place]
        shared = _grouped(found, constant, size + 1)
        if len(shared.groups) < MOST * len(chosen) or not bool(shared.slope.any()):
            return None
    return shared


def filled(some: Rivals, groups: Tensor) -> Tensor:
    """The places (m, g) of some groups' entries, the first one repeated where a group has fewer."""
    real = torch.arange(len(some.places), device=groups.device)[:, None] < some.count[groups]
    return torch.where(real, some.places[:, groups], some.places[:1, groups])


def _with_padding(found: Singles, zero: int) -> Singles:
    """The same where entries (m, g) that read crumbs alone are functions of an input that is zero."""
    lead = found.slope.gather(0, found.slope.abs().argmax(0, keepdim=True))
    empty = found.slope.abs() <= CRUMBS * lead.abs()
    return replace(
        found,
        slope=torch.where(empty, lead, found.slope),
        place=found.place.masked_fill(empty, zero),
        crumbs=found.crumbs + torch.where(empty, found.moves, 0.0),
        moves=found.moves.masked_fill(empty, 0.0),
    )


def _grouped(found: Singles, constants: Tensor, size: int) -> Shared:
    """The groups (g,) that read one of `size` inputs all alike, and those that hardly move, as constants."""
    constant = (constants.amin(0) + constants.amax(0)) / 2
    crumbs = found.crumbs.amax(0) + (constants - constant).abs().amax(0)
    same = (found.slope - found.slope[0]).abs().amax(0) <= SAME * found.slope[0].abs()
    single = same & (crumbs <= CRUMBS * found.moves.amax(0))
    moves = found.moves + found.crumbs
    low, high = (found.middle - moves).amax(0), (found.middle + moves).amax(0)
    still = ~single & (high - low <= SMALL * found.moves.amax())
    constant, crumbs = (
        torch.where(still, (low + high) / 2, constant),
        torch.where(still, (high - low) / 2, crumbs),
    )
    groups = (single | still).nonzero()[:, 0]
    slope = torch.where(still, 0.0, found.slope[0])[groups]
    signed = torch.where(still, 0, found.place)[:, groups] + (slope < 0) * size
    keys, key = signed.sort(0).values.unique(dim=1, return_inverse=True)
    return Shared(groups, keys, key, slope.abs(), constant[groups], crumbs[groups])
