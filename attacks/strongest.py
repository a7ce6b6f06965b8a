"""The worst case without a parameter: smoothed targeted ascents, then more for near misses and masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.chains import Course, Search
from attacks.losses import against, clearly_wrong, margin_loss
from attacks.noise import COPIES, noisy
from attacks.polish import polish
from attacks.settle import settle
from attacks.square import search as random_search
from models.base import Batch, margin
from models.cost import Cost
from models.randomness import Randomness
from models.threat import ThreatModel

TARGETS, MOST, CLOSEST = 3, 9, 2
DRAWS = 8
NEAR, NEARER, NEAREST, REACH = 0.2, 0.1, 0.03, 1.0
# Gradients went astray where chance takes 10 % off a margin that is at most half of what they took off.
ASTRAY, FOUND = 0.5, 0.9
# Rounds of random search: queries, and the share of the image that the first square covers.
FLIPS = ((400, 0.02),)
SQUARES = ((1000, 0.8),)
IN_THE_DARK = ((1000, 0.8), (1500, 0.2), (2500, 0.05))
SCRATCH = ((2000, 0.8),)
PACED = ((50, 0.1), (150, 0.1), (300, 0.1), (500, 0.1), (1000, 0.1))
# Squares that one pass asks about.
TRIES = 8
ENTRIES = 2**18
FEWEST = 8

PLAIN = Course(steps=5)
AHEAD = Course(steps=20, smooth=0.7)
OTHERS = Course(steps=10, smooth=0.7)
WIDER = Course(steps=20, smooth=0.7, breadth=2.0)
NARROWER = Course(steps=20, smooth=0.7, breadth=0.5)


@register_attack("strongest")
@dataclass(frozen=True, kw_only=True)
class Strongest(Attack):
    """The suite's worst case: no parameters, any classifier, later rungs for the samples that still hold.

    Every rung climbs z_t - z_y with momentum on a step that falls from 2 eps to 0.02 eps; a sample leaves
    when it is clearly misclassified, and `won_by` of the result names the rung that broke it. "gradient": 5
    steps from x on the strongest rival. "noise": random corners of the linf ball. "smoothed": 20 steps to
    each of the 3 likeliest classes, derivatives averaged over windows that close (`attacks.smoothed`),
    which sees through thresholds and roundings. "near", for margins that have fallen by 5/6 or more: 10
    steps towards each of the next 6 classes, then 20 from x with wider windows and 20 from a random point
    with narrower ones, towards the 2 whose ascents came closest. "restart": 20 steps from a random point
    where random noise alone did as well as all that. For margins that have all but gone: "blocks" in linf
    (`attacks.polish`), "settled" in l2 and l1, smaller steps from the best point (`attacks.settle`).
    "flips": where the true gradient is zero, random search by small squares from the best point of a near
    sample. "square": random search by large squares where random noise is still no worse, 1000 queries, or
    up to 5000 where no gradient of any kind is left. "pace": random search from the best point of whatever
    has lost half of its margin, for as long as its pace would break the sample within 2000 queries: honest
    gradients leave next to nothing to it, and it ends after 50. Where it did find something, linf,
    gradients have gone astray, and "square" searches once more from stripes. l1 has no random search.
    Gradients that are withheld or falsified are seen through (attacks.withheld, choices, scores); where none
    is left at a point a random direction is taken. A random model's hits are confirmed on 24 fresh draws.
    A surrogate that the model declares is followed (BPDA); a random model's gradients are averaged (EOT).
    Raises what `Attack.run` raises.
    Source: this project (windows that close); the ladder after Croce, Hein 2020, 2003.01690, section 6.
    """

    paper = "Croce, Hein 2020, 2003.01690, section 6"
    norms = ("linf", "l2", "l1")
    cost = Cost.MEDIUM

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        size = max(FEWEST, ENTRIES // batch.x[0].numel())
        points = []
        for first, piece in enumerate(batch.split(size)):
            rows = torch.arange(first * size, first * size + len(piece), device=batch.x.device)
            part = model.part(GradientAccess, len(piece), piece.y)
            with torch.random.fork_rng(enabled=model.stochastic):
                if model.stochastic:
                    torch.manual_seed(randomness.seed % 2**63)
                points.append(self._ladder(part, piece, threat, randomness))
            model.absorb(part, rows)
            for stage in part.stages:
                model.credit(rows[part.stage.to(rows.device) == part.stages.index(stage)], stage)
        return torch.cat(points)

    def _ladder(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Tensor:
        search = Search(model, batch, threat, DRAWS if model.stochastic else 1)
        everyone = torch.arange(len(batch), device=batch.x.device)
        search.climb(everyone, batch.x, torch.full_like(everyone, -1), PLAIN, "gradient")
        rows = search.live
        if not len(rows):
            return search.point
        ground = Ground.measured(search, rows, randomness)
        rows = rows[~search.broken[rows]]
        ground.aim(search, rows, batch.x[rows], AHEAD, "smoothed", ground.likeliest(rows, 0, TARGETS))
        near = ground.near(search)
        ground.aim(search, near, batch.x[near], OTHERS, "near", ground.likeliest(near, TARGETS, MOST))
        near = near[~search.broken[near]]
        ground.aim(search, near, batch.x[near], WIDER, "near", ground.closest(near))
        near = near[~search.broken[near]]
        if len(near):
            start = threat.sample(batch.x[near], batch.index[near], randomness.child("near"))
            ground.aim(search, near, start, NARROWER, "near", ground.closest(near))
        lost = ground.distrusted(search)
        if len(lost):
            start = threat.sample(batch.x[lost], batch.index[lost], randomness.child("restart"))
            search.climb(lost, start, torch.full_like(lost, -1), AHEAD, "restart")
        if threat.norm == "linf":
            polish(search, ground.within(search, NEAREST), "blocks")
        else:
            settle(search, ground.within(search, NEARER), "settled")
        if threat.norm != "l1":
            self._search_blindly(search, ground, randomness)
        return search.point

    def _dark(self, search: Search, rows: Tensor) -> Tensor:
        """Whether even the widest windows show no gradient at the clean inputs of `rows` (k,)."""
        reaches = [part[rows] for part in search.reaches]
        _, _, slope = search.look(search.batch.x[rows], rows, torch.full_like(rows, -1), reaches, 1.0)
        return (slope == 0).flatten(1).all(1)

    def _search_blindly(self, search: Search, ground: Ground, randomness: Randomness) -> None:
        """Random search where gradients fail: from near points, and from scratch for what nothing lowered."""
        masked = ground.within(search, NEAR)
        masked = masked[ground.blind[masked]]
        lost = ground.distrusted(search)
        dark = self._dark(search, lost) if len(lost) else lost.bool()
        for rows, rounds, stage, fresh in (
            (masked, FLIPS, "flips", False),
            (lost[~dark], SQUARES, "square", True),
            (lost[dark], IN_THE_DARK, "square", True),
        ):
            _draw(search, rows, rounds, stage, randomness.child(stage), fresh)
        rows = ground.within(search, REACH)
        before = search.margin[rows]
        _draw(search, rows, PACED, "pace", randomness.child("pace"))
        if search.threat.norm == "linf":
            lowered = torch.zeros_like(search.broken)
            lowered[rows] = search.margin[rows] < FOUND * before
            astray = ground.within(search, ASTRAY)
            _draw(search, astray[lowered[astray]], SCRATCH, "square", randomness.child("scratch"), fresh=True)


def _draw(
    search: Search,
    rows: Tensor,
    rounds: tuple[tuple[int, float], ...],
    stage: str,
    randomness: Randomness,
    fresh: bool = False,
) -> None:
    """Books what random search finds for `rows` (k,) from their best points, or from stripes if `fresh`.

    After a round go on those samples that the rest of the queries would break at the pace of that round.
    """
    for number, (queries, area) in enumerate(rounds):
        if not len(rows):
            return
        before, left = search.margin[rows], sum(later for later, _ in rounds[number + 1 :]) / queries
        point, broken, margins = random_search(
            search.model,
            search.batch,
            rows,
            search.threat,
            randomness.child("round", number),
            queries=queries,
            first=area,
            tries=TRIES,
            start=None if fresh and not number else search.point[rows],
        )
        search.offer(rows, point, margins, broken, stage)
        gained = before - search.margin[rows]
        rows = rows[~search.broken[rows] & (left * gained >= search.margin[rows])]


@dataclass(frozen=True)
class Ground:
    """What was seen around the clean inputs of the samples `rows` (k,), as tensors of all n samples.

    goals (n, targets) holds the classes that came closest on any noisy copy, the likeliest first, and lowest
    (n, targets) the smallest margin that an ascent towards each has found; clean (n,) are the margins at x,
    luck (n,) the smallest margins that random noise found, blind (n,) says whether the true gradient is zero,
    tied (n,) whether all rivals score the same wherever noise leads, as where labels stand for scores: then
    no margin says who is near.
    """

    goals: Tensor
    lowest: Tensor
    clean: Tensor
    luck: Tensor
    blind: Tensor
    tied: Tensor

    @staticmethod
    def measured(search: Search, rows: Tensor, randomness: Randomness) -> Ground:
        """Asks the model about noisy copies of `rows`, and opens the windows of `search` by what moves.

        What noise alone breaks is booked where it is legal: in linf.
        """
        batch, n = search.batch[rows], len(search.batch)
        copies = COPIES + 1
        versions = noisy(batch, search.threat, randomness)
        logits, reaches = search.model.reach(versions, rows.repeat(copies), copies)
        search.reaches = [spread_over(n, rows, part) for part in reaches]
        y = batch.y.repeat(copies)
        gaps = (logits - logits.gather(1, y[:, None])).scatter(1, y[:, None], -torch.inf)
        closest = gaps.unflatten(0, (copies, -1)).amax(0)
        # A model that hands out labels leaves rivals tied: what it chose them by tells them apart.
        tied = (closest == closest.masked_fill(~closest.isfinite(), torch.inf).amin(1, keepdim=True)).sum(1)
        tied = tied == search.model.num_classes - 1
        if bool(tied.any()) and search.model.num_classes > 2:
            choices = search.model.relaxed(batch.x[tied])
            closest[tied] = (
                (choices - choices.gather(1, batch.y[tied, None]))
                .to(closest)
                .scatter(1, batch.y[tied, None], -torch.inf)
            )
        rivals = closest.topk(min(MOST, search.model.num_classes - 1), dim=1).indices
        margins, wrong = margin(logits, y), clearly_wrong(logits, y)
        if search.threat.norm == "linf" and search.draws == 1 and bool(wrong.any()):
            hits = (rows.repeat(copies)[wrong], versions[wrong], margins[wrong], wrong[wrong])
            search.offer(*hits, "noise")
        margins = margins.unflatten(0, (copies, -1))
        blind = search.model.blind(batch.x, rows, against(margin_loss, batch.y))
        lowest = torch.full_like(rivals, torch.inf, dtype=margins.dtype)
        found = (rivals, lowest, margins[0], margins.amin(0), blind, tied)
        return Ground(*(spread_over(n, rows, part) for part in found))

    def likeliest(self, rows: Tensor, first: int, last: int) -> Tensor:
        """The places in `goals` from `first` to before `last`, for each of `rows` (k,): (k, places)."""
        places = torch.arange(self.goals.shape[1], device=rows.device)[first:last]
        return places.expand(len(rows), -1)

    def closest(self, rows: Tensor) -> Tensor:
        """The places in `goals` of the CLOSEST towards which ascents have come, by `rows` (k,): (k, places).

        What noise rates highest is often not what an ascent reaches.
        """
        return self.lowest[rows].argsort(dim=1, stable=True)[:, :CLOSEST]

    def aim(
        self, search: Search, rows: Tensor, start: Tensor, course: Course, stage: str, places: Tensor
    ) -> None:
        """One chain towards each of the goals at `places` (k, m) from the `start` (k, ...) of `rows` (k,)."""
        if not places.numel():
            return
        count, place = places.shape[1], places.flatten()
        owner = rows.repeat_interleave(count)
        goals = self.goals[owner, place]
        low = search.climb(owner, start.repeat_interleave(count, 0), goals, course, stage)
        self.lowest[owner, place] = torch.minimum(self.lowest[owner, place], low)

    def within(self, search: Search, share: float) -> Tensor:
        """The samples that hold with a margin of at most `share` of what has been taken off it."""
        rows = search.live
        taken = (self.clean - search.margin)[rows]
        return rows[search.margin[rows] <= share * taken]

    def near(self, search: Search) -> Tensor:
        """The samples that hold by a small margin, or by one that says nothing."""
        rows = search.live
        taken = (self.clean - search.margin)[rows]
        return rows[(search.margin[rows] <= NEAR * taken) | self.tied[rows]]

    def distrusted(self, search: Search) -> Tensor:
        """The samples that hold and whose margin the gradient lowered no further than random noise did.

        In l2 and l1 that noise leaves the ball, and only a gradient that did nothing at all is distrusted.
        """
        rows = search.live
        luck = self.luck if search.threat.norm == "linf" else self.clean
        return rows[search.margin[rows] >= luck[rows]]


def spread_over(n: int, rows: Tensor, values: Tensor) -> Tensor:
    """The `values` (k, ...) of the samples `rows` as a tensor of n rows, zero elsewhere."""
    return values.new_zeros(n, *values.shape[1:]).index_copy_(0, rows, values)
