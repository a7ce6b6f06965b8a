"""One pixel: differential evolution over the places and colours of a few pixels, from scores alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.images import as_images
from attacks.losses import aimed, check_loss, clearly_wrong
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel

ENTRIES = 20_000_000
"""Candidates are asked for in groups of at most so many numbers, which bounds the memory."""
MEAN, SPREAD = 128 / 255, 127 / 255
"""Of the first colours, in box widths."""


def pixels_within(threat: ThreatModel, image: Tensor) -> int:
    """How many pixels of an image (n, c, h, w) may change; for l0 one takes c entries, a lone one fewer."""
    _, channels, height, width = image.shape
    allowed = threat.count(image[0].numel() if threat.norm == "l0" else height * width)
    return max(allowed // channels, min(allowed, 1)) if threat.norm == "l0" else allowed


def paint(image: Tensor, genes: Tensor, box: Box) -> Tensor:
    """Images (m, c, h, w) with pixels set as their genes (m, pixels, 2 + c) say, the last one on top.

    A pixel's genes are its place as shares of height and width and its colour in box widths, each in [0, 1].
    """
    painted, (height, width) = image.clone(), image.shape[2:]
    everyone = torch.arange(len(image), device=image.device)
    for place, colour in zip(genes[:, :, :2].unbind(1), genes[:, :, 2:].unbind(1), strict=True):
        row = (place[:, 0] * height).long().clamp(max=height - 1)
        column = (place[:, 1] * width).long().clamp(max=width - 1)
        painted[everyone, :, row, column] = box.clamp(box.lower + box.width * colour)
    return painted


def parents(draws: Tensor, population: int) -> Tensor:
    """Three different members of a population for each row of uniform `draws` (..., 3): indices."""
    first = (draws[..., 0] * population).long()
    second = (first + 1 + (draws[..., 1] * (population - 1)).long()) % population
    third = (draws[..., 2] * (population - 2)).long()
    for taken in (torch.minimum(first, second), torch.maximum(first, second)):
        third = third + (third >= taken)
    return torch.stack([first, second, third], -1)


@register_attack("one-pixel")
@dataclass(frozen=True, kw_only=True)
class OnePixel(Attack):
    """Moves and colours the few pixels that eps allows by differential evolution, from scores alone.

    A candidate holds a place and a colour for each pixel. In each generation every one of `population`
    candidates i meets a child r1 + `factor` (r2 - r3) of three others drawn at random, clipped to image and
    box, without crossover, and gives way where the child's loss is higher. The first ones have uniform places
    and colours from N(128, 127) of 255. The paper's loss is -p_y; `loss` "ce" orders candidates as that does,
    the default "margin" also where the network is so sure that p_y rounds to 1. A sample leaves after the
    first generation that has a misclassified candidate, or at `queries` queries (the paper: 100 generations
    of 400). For l0 a pixel takes as many entries as it has channels; a vector is one row of pixels.
    `base` "best" takes the fittest candidate for r1, which SciPy's differential evolution does and the paper
    does not: a large population moves slowly otherwise. With few queries a small one reaches farther, and
    `sparse-rs` farther still.
    Source: Su, Vargas, Sakurai 2019, 1710.08864, eq. 4 and section III.
    """

    paper = "Su, Vargas, Sakurai 2019, 1710.08864"
    norms = ("l0", "mask")
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 40_000
    population: int = 400
    factor: float = 0.5
    base: str = "random"
    loss: str = "margin"

    def __post_init__(self) -> None:
        if self.population < 3 or self.queries < 1 or self.factor <= 0:
            raise UserError("one-pixel needs population >= 3, queries >= 1 and a factor > 0")
        if self.base not in ("random", "best"):
            raise UserError(f"one-pixel has no base '{self.base}': write 'random' or 'best'")
        check_loss(self.loss, "one-pixel")

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, image = batch.x.clone(), as_images(batch.x)
        pixels = pixels_within(threat, image)
        if not pixels:
            return best
        live = torch.arange(len(batch), device=best.device)
        genes = self._first(batch, pixels, image.shape[1], randomness.child("first"))
        fitness = torch.full(genes.shape[:2], -torch.inf).to(best)
        for asked in range(0, self.queries, self.population):
            children, count = genes, min(self.population, self.queries - asked)
            if asked:
                stream = randomness.child("generation", asked // self.population)
                children = self._children(genes, fitness, batch.index[live], stream)
            value, wrong = self._ask(model, batch, live, threat, children[:, :count])
            better = value > fitness[:, :count]
            genes[:, :count] = torch.where(better[:, :, None, None], children[:, :count], genes[:, :count])
            fitness[:, :count] = torch.maximum(value, fitness[:, :count])
            broken = wrong.any(1)
            if bool(broken.any()):
                winner = wrong[broken].long().argmax(1)
                best[live[broken]] = self._points(batch.x[live[broken]], children[broken, winner], threat)
                live, genes, fitness = live[~broken], genes[~broken], fitness[~broken]
                if not len(live):
                    return best
        fittest = genes[torch.arange(len(live), device=best.device), fitness.argmax(1)]
        best[live] = self._points(batch.x[live], fittest, threat)
        return best

    def _first(self, batch: Batch, pixels: int, channels: int, randomness: Randomness) -> Tensor:
        """The genes (n, population, pixels, 2 + channels) of the first generation."""
        place = randomness.child("place").uniform(batch.index, (self.population, pixels, 2))
        colour = MEAN + SPREAD * randomness.normal(batch.index, (self.population, pixels, channels))
        return torch.cat([place, colour], 3).clamp(0, 1).to(batch.x)

    def _children(self, genes: Tensor, fitness: Tensor, index: Tensor, randomness: Randomness) -> Tensor:
        chosen = parents(randomness.uniform(index, (self.population, 3)), self.population)
        sample = torch.arange(len(genes), device=genes.device)[:, None]
        first, second, third = (genes[sample, one] for one in chosen.unbind(2))
        if self.base == "best":
            first = genes[sample, fitness.argmax(1, keepdim=True)]
        return (first + self.factor * (second - third)).clamp(0, 1)

    def _points(self, x: Tensor, genes: Tensor, threat: ThreatModel) -> Tensor:
        """The inputs (m, ...) that genes (m, pixels, 2 + c) make of x."""
        return threat.project(x, paint(as_images(x), genes, threat.box).reshape(x.shape))

    def _ask(
        self, model: ScoreAccess, batch: Batch, live: Tensor, threat: ThreatModel, genes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss and whether it fools of every candidate (k, count) of the samples `live` (k,)."""
        rows, values, wrong = live.repeat_interleave(genes.shape[1]), [], []
        group = max(ENTRIES // batch.x[0].numel(), 1)
        for some, mine in zip(rows.split(group), genes.flatten(0, 1).split(group), strict=True):
            logits = model.logits(self._points(batch.x[some], mine, threat), some)
            values.append(aimed(self.loss, batch.y[some], None)(logits))
            wrong.append(clearly_wrong(logits, batch.y[some]))
        return torch.cat(values).reshape(genes.shape[:2]), torch.cat(wrong).reshape(genes.shape[:2])
