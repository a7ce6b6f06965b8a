"""Tighter bounds on a folded network's neurons, each with lower lines of its own."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from certify.ascent import climb
from certify.dual import Branches, Dual
from certify.folded import Folded, Targets

CELLS = 4_000_000

# Layers that take more than so many entries try a few neurons first, and are left as they are where the
# ranges of these shrink by a smaller part: maxima over a first layer are many, and as tight as they get.
LARGE, TRIED, LITTLE = 500_000, 24, 0.03


def tightened(
    folded: Folded, targets: Targets, *, steps: int, rate: float, deadline: float, enveloped: bool = False
) -> tuple[Folded, Targets]:
    """The folded network after ascending both bounds of every neuron, layer by layer.

    If `enveloped`, under upper lines of the first neurons that ascend too (linf only). Neurons that become
    stable are folded away. Stops between two chunks of rows when
    time.monotonic() passes `deadline`: every bound kept is proved.
    """
    place = 0
    while place < len(folded.layers) and time.monotonic() < deadline:
        layer = folded.layers[place]
        if layer.start == 0:
            place += 1
            continue
        lower, upper = folded.lower.clone(), folded.upper.clone()
        found = _both_sides(folded, layer, steps, rate, deadline, enveloped)
        lower[layer] = torch.maximum(lower[layer], found[: len(found) // 2])
        upper[layer] = torch.minimum(upper[layer], -found[len(found) // 2 :])
        before = len(folded.layers)
        folded, targets = folded.tightened(lower, upper, targets)
        place += 1 - (before - len(folded.layers))
    return folded, targets


def _both_sides(
    folded: Folded, layer: slice, steps: int, rate: float, deadline: float, enveloped: bool
) -> Tensor:
    """Lower bounds on z and on -z of a layer's neurons (2 k,), over the earlier neurons."""
    earlier = _before(folded, layer)
    sides = folded.layer_targets(layer)
    sides = Targets(sides.input_rows, sides.neuron_rows[..., : layer.start], sides.constant, sides.real)
    found = sides.constant.new_full((len(sides),), -torch.inf)
    size = max(1, CELLS // max(1, layer.start + folded.input_rows.shape[1]))

    def bound(places: Tensor) -> None:
        for rows in torch.cat([places, places + len(sides) // 2]).split(size):
            part = sides.select(rows)
            found[rows], _, _ = climb(
                Dual(earlier, part), Branches.roots(earlier, part), steps=steps, rate=rate, stop=0.0,
                deadline=deadline, enveloped=enveloped,
            )  # fmt: skip

    places = torch.arange(len(sides) // 2)
    if len(places) * layer.start > LARGE:
        tried = torch.arange(len(places)) % max(1, len(places) // TRIED) == 0
        bound(places[tried])
        if _shrunk(folded, layer, found)[tried].mean() < LITTLE:
            return found
        places = places[~tried]
    bound(places)
    return found


def _shrunk(folded: Folded, layer: slice, found: Tensor) -> Tensor:
    """The part of each range (k,) of a layer that bounds (2 k,) from both sides leave out."""
    lower, upper = folded.lower[layer], folded.upper[layer]
    below, above = found.chunk(2)
    return 1 - (torch.minimum(upper, -above) - torch.maximum(lower, below)) / (upper - lower)


def _before(folded: Folded, layer: slice) -> Folded:
    """The network up to `layer`, without it."""
    part = slice(0, layer.start)
    layers = tuple(other for other in folded.layers if other.stop <= layer.start)
    return Folded(
        folded.inputs, layers, folded.input_rows[part], folded.neuron_rows[part, part],
        folded.constant[part], folded.leak[part], folded.lower[part], folded.upper[part],
    )  # fmt: skip
