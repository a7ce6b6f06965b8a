"""What splits of each neuron have won so far: a guess at what the next one wins."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.dual import Branches, Dual
from certify.folded import Folded

# Per unit of its gap a split in the last layer is taken to win so much before any is seen, a part of that in
# the layer before it, and so on: gaps of early layers are partly closed by what the later ones do.
FIRST_GUESS, EARLIER = 0.3, 0.7

# How many splits seen the guess of a layer weighs, and that of a neuron beside its layer's.
LAYER_WEIGHT, NEURON_WEIGHT = 10.0, 3.0

# Gaps below such a part of what a bound misses teach nothing.
SMALL_GAP = 1e-3

# What the better child adds to a split's worth: both have to be proved, but the worse takes longer.
BETTER_CHILD = 0.3


class PseudoCosts:
    """Mean rises of both children's bounds, per unit of the gap that the split neuron left in the parent's.

    A gap alone says what a split could win at most. How much of it is won differs by neuron and is alike
    all over a tree, so that what thousands of branches have won tells which neuron to split in the next.
    Source: Achterberg, Koch & Martin 2005, Branching rules revisited (pseudocosts, there of integers).
    """

    def __init__(self, dual: Dual) -> None:
        self.dual, folded = dual, dual.folded
        self.layer = torch.zeros(folded.neurons, dtype=torch.long)
        for place, layer in enumerate(folded.layers):
            self.layer[layer] = place
        self.won = torch.zeros(2, folded.neurons, dtype=torch.float64)
        self.seen = torch.zeros(2, folded.neurons, dtype=torch.float64)
        self.guess = FIRST_GUESS * EARLIER ** _behind(folded)

    def learn(
        self, parents: Branches, places: Tensor, slopes: Tensor, missing: Tensor, rises: Tensor
    ) -> None:
        """Notes splits of parents (b,) on neurons `places` (b,) of coefficients `slopes` (b,).

        missing (b,) > 0 is how far a parent's bound was from its goal, rises (2, b) by how much those of its
        children are above it.
        """
        alpha = parents.alpha.gather(1, places[:, None])[:, 0]
        gaps = torch.maximum(self.dual.gaps(slopes, alpha, places), SMALL_GAP * missing)
        for side, rise in enumerate(rises):
            self.won[side].index_add_(0, places, rise / gaps)
            self.seen[side].index_add_(0, places, torch.ones_like(gaps))

    def worth(self, branches: Branches, q: Tensor, missing: Tensor) -> Tensor:
        """What a split of each neuron (b, m) of coefficients q on its output promises, by all seen."""
        layers = torch.zeros(2, len(self.guess), dtype=torch.float64)
        won, seen = layers.index_add(1, self.layer, self.won), layers.index_add(1, self.layer, self.seen)
        usual = (won + LAYER_WEIGHT * self.guess) / (seen + LAYER_WEIGHT)
        rate = (self.won + NEURON_WEIGHT * usual[:, self.layer]) / (self.seen + NEURON_WEIGHT)
        gaps = torch.maximum(self.dual.gaps(q, branches.alpha), SMALL_GAP * missing.clamp(min=0)[:, None])
        return both(gaps * rate.amin(0), gaps * rate.amax(0))


def _behind(folded: Folded) -> Tensor:
    """How many layers stand between each layer and the targets: layers side by side have as many."""
    behind = torch.zeros(len(folded.layers), dtype=torch.float64)
    for place, layer in reversed(list(enumerate(folded.layers))):
        for later, reader in enumerate(folded.layers[place + 1 :], start=place + 1):
            if bool((folded.neuron_rows[reader, layer] != 0).any()):
                behind[place] = max(behind[place], behind[later] + 1)
    return behind


def both(worse: Tensor, better: Tensor) -> Tensor:
    """The worth of a split whose children have such bounds, or rises."""
    return worse + BETTER_CHILD * better
