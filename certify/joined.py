"""Several networks as one, and what a property speaks of behind their outputs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from certify.input_bounds import Given


class SideBySide(nn.Module):
    """Networks on parts of one row of inputs: (n, free) to the outputs of all, one behind the other.

    Each takes its own of the inputs scale * free[places] + shift, in the order of the networks, in a shape of
    `shapes`. A network that stands in the list twice is the same on two parts.
    """

    def __init__(
        self, networks: Sequence[nn.Module], shapes: Sequence[tuple[int, ...]], given: Given
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.shapes = tuple(shapes)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        ends = list(itertools.accumulate(sizes))
        self.parts = nn.ModuleList(
            _part(given, end - size, end) for size, end in zip(sizes, ends, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        found = [
            network(part(x).reshape(-1, *shape))
            for network, part, shape in zip(self.networks, self.parts, self.shapes, strict=True)
        ]
        return torch.cat(found, 1)


class _Stretch(nn.Module):
    """Neighbouring entries as they are."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.end]


def _part(given: Given, start: int, end: int) -> nn.Module:
    """The inputs start to end from the free ones."""
    places, scale, shift = given.places[start:end], given.scale[start:end], given.shift[start:end]
    first = int(places[0])
    if bool((places == torch.arange(first, first + end - start)).all() and (scale == 1).all()) and not bool(
        shift.any()
    ):
        return _Stretch(first, first + end - start)
    return _affine(places, len(given.names), scale, shift)


def _affine(
    places: Tensor, width: int, scale: Tensor | float = 1.0, shift: Tensor | None = None
) -> nn.Linear:
    """scale * x[places] + shift of rows of `width` entries."""
    layer = nn.utils.skip_init(nn.Linear, width, len(places), bias=shift is not None, dtype=torch.float64)
    layer.weight.data.zero_()
    layer.weight.data[torch.arange(len(places)), places] = torch.as_tensor(scale, dtype=torch.float64)
    if shift is not None:
        layer.bias.data = shift.clone()
    return layer.requires_grad_(False)


class WithTerms(nn.Module):
    """A network's outputs, behind them sums of its inputs, and products of inputs and outputs.

    sums (m, inputs) are rows; a product is the places of its parts in [inputs, outputs], in the order that
    `Terms` gives them.
    """

    def __init__(
        self, network: nn.Module, sums: Tensor, products: Sequence[tuple[int, ...]], outputs: int
    ) -> None:
        super().__init__()
        self.network = network
        self.sums: nn.Module | None = None
        if len(sums):
            self.sums = nn.utils.skip_init(
                nn.Linear, sums.shape[1], len(sums), bias=False, dtype=torch.float64
            )
            self.sums.weight.data = sums
        width = sums.shape[1] + outputs
        degrees = [
            [one for one in products if len(one) == d]
            for d in range(2, 1 + max(map(len, products), default=1))
        ]
        self.squares = _picked([a for a, b in degrees[0] if a == b], width) if degrees else None
        crossed = [one for one in degrees[0] if one[0] != one[1]] if degrees else []
        self.left, self.right = (_picked([one[k] for one in crossed], width) for k in (0, 1))
        self.before, self.after = nn.ModuleList(), nn.ModuleList()
        for lower, higher in itertools.pairwise(degrees):
            self.before.append(_affine(torch.tensor([lower.index(one[:-1]) for one in higher]), len(lower)))
            self.after.append(_affine(torch.tensor([one[-1] for one in higher]), width))

    def forward(self, x: Tensor) -> Tensor:
        found = [self.network(x)]
        inputs = x.flatten(1)
        every = torch.cat([inputs, found[0]], 1)
        if self.sums is not None:
            found.append(self.sums(inputs))
        second = []
        if self.squares is not None:
            base = self.squares(every)
            second.append(base * base)
        if self.left is not None and self.right is not None:
            second.append(self.left(every) * self.right(every))
        if second:
            found.append(torch.cat(second, 1) if len(second) > 1 else second[0])
        for before, after in zip(self.before, self.after, strict=True):
            found.append(before(found[-1]) * after(every))
        return torch.cat(found, 1)


def _picked(places: Sequence[int], width: int) -> nn.Linear | None:
    return _affine(torch.tensor(places), width) if places else None
