"""Pixle: pixels copied over others of the same image, chosen at random, from scores alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.images import as_images
from attacks.losses import clearly_wrong
from attacks.one_pixel import pixels_within
from attacks.simba import doubt
from attacks.sparse_rs import as_inputs, as_places
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


@dataclass(frozen=True)
class Patches:
    """Random windows of pictures of `height` x `width` pixels, with sides from `least` to `most` pixels."""

    height: int
    width: int
    least: int
    most: int

    def places(self, index: Tensor, randomness: Randomness) -> tuple[Tensor, Tensor]:
        """A window's pixels, row by row, as places in the picture (n, m), and which of the m it has."""
        draws = randomness.uniform(index, (4,)).double()
        rows, top = self._side(draws[:, 0], draws[:, 1], self.height)
        columns, left = self._side(draws[:, 2], draws[:, 3], self.width)
        down = torch.arange(min(self.most, self.height), device=index.device)[:, None]
        along = torch.arange(min(self.most, self.width), device=index.device)[None]
        inside = (down < rows[:, None, None]) & (along < columns[:, None, None])
        place = (top[:, None, None] + down) * self.width + left[:, None, None] + along
        return torch.where(inside, place, 0).flatten(1), inside.flatten(1)

    def _side(self, size: Tensor, start: Tensor, length: int) -> tuple[Tensor, Tensor]:
        least, most = min(self.least, length), min(self.most, length)
        size = least + (size * (most - least + 1)).long()
        return size, (start * (length - size + 1)).long()


def rearranged(
    z: Tensor, x: Tensor, patches: Patches, count: int, index: Tensor, randomness: Randomness
) -> Tensor:
    """z (n, pixels, channels) with a window of x copied pixel by pixel to random places; `count` changed.

    Where more pixels than `count` would differ from x, some that were changed before go back to x.
    """
    source, inside = patches.places(index, randomness.child("patch"))
    inside = inside & (inside.cumsum(1) <= count)
    place = randomness.child("place").uniform(index, z.shape[1:2]).argsort(1)[:, : source.shape[1]]
    wide = place[:, :, None].expand(-1, -1, z.shape[2])
    copied = x.gather(1, source[:, :, None].expand_as(wide))
    moved = z.scatter(1, wide, torch.where(inside[:, :, None], copied, z.gather(1, wide)))
    changed = (moved != x).any(2)
    old = changed & ~torch.zeros_like(changed).scatter(1, place, inside)
    draws = randomness.child("back").uniform(index, z.shape[1:2]).masked_fill(~old, -1.0)
    rank = draws.argsort(1, descending=True).argsort(1)
    back = rank < (changed.sum(1) - count)[:, None]
    return torch.where(back[:, :, None], x, moved)


@register_attack("pixle")
@dataclass(frozen=True, kw_only=True)
class Pixle(Attack):
    """Copies pixels of random windows of the image over others of it, from scores alone.

    Each query copies a window of x, sides `least` to `most` pixels long, pixel by pixel to random places. Of
    every `tries` such moves from the same point the one of smallest p_y is taken over where that has fallen:
    `tries` = 1 is the paper's iterative version, which takes fewer queries, more its version with restarts.
    p_y is compared as ln((1 - p_y) / p_y), which does not saturate. No more pixels than eps allows differ
    from x, where the paper has no limit: for l0 a pixel takes as many entries as it has channels, for "mask"
    one; changed ones go back to x, at random, where a window brings too many. Every value is one that the
    image has, and the network is fooled by their order alone; `sparse-rs` reaches farther. A vector is one
    row of pixels. A sample leaves at its first misclassification.
    Source: Pomponi, Scardapane, Uncini 2022, 2202.02236, section 3, with random mapping.
    """

    paper = "Pomponi, Scardapane, Uncini 2022, 2202.02236"
    norms = ("l0", "mask")
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    tries: int = 10
    least: int = 2
    most: int = 10

    def __post_init__(self) -> None:
        if min(self.queries, self.tries) < 1 or not 1 <= self.least <= self.most:
            raise UserError("pixle needs queries >= 1, tries >= 1 and 1 <= least <= most")

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        image, best = as_images(batch.x), batch.x.clone()
        count = pixels_within(threat, image)
        if not count:
            return best
        height, width = image.shape[2:]
        patches = Patches(height, width, self.least, self.most)
        x, live = as_places(batch.x, "mask"), torch.arange(len(batch), device=best.device)
        here = leader = x
        value, _ = self._ask(model, batch, live, best)
        for query in range(1, self.queries):
            stream = randomness.child("query", query)
            moved = rearranged(here, x[live], patches, count, batch.index[live], stream)
            points = threat.project(batch.x[live], as_inputs(moved, batch.x[live], "mask"))
            found, wrong = self._ask(model, batch, live, points)
            better = (found > value) | wrong
            best[live[better]] = points[better]
            value = torch.maximum(found, value)
            leader = torch.where(better[:, None, None], as_places(points, "mask"), leader)
            if bool(wrong.any()):
                live, here, leader, value = (part[~wrong] for part in (live, here, leader, value))
                if not len(live):
                    break
            if query % self.tries == 0:
                here = leader
        return best

    def _ask(self, model: ScoreAccess, batch: Batch, rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """How little the label is believed at points (k, ...) of the samples `rows`, and where it errs."""
        logits = model.logits(points, rows)
        return doubt(logits, batch.y[rows]), clearly_wrong(logits, batch.y[rows])
