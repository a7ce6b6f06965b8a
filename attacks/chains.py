"""Many ascents in one batch: each chain climbs for a sample, and all of a sample's stop when one succeeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.losses import clearly_wrong, log_odds, margin_loss
from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm

SPARSEST, DENSEST = 0.3, 4.0
# A random model errs where it does on so large a share of so many fresh draws.
AGAIN, SURELY = 24, 0.6
# So many calls show whether a random model draws once for all that it is asked at once.
SEVERAL = 8
# And then gradients of few draws lead on for so many times more steps.
PATIENCE = 3


@dataclass(frozen=True)
class Course:
    """How a chain moves: `steps` steps from `first` to `last` radii on a cosine, with momentum.

    The windows over which derivatives are averaged close over the first `smooth` part of the steps.
    """

    steps: int
    smooth: float = 0.0
    breadth: float = 1.0
    first: float = 2.0
    last: float = 0.02
    momentum: float = 0.5

    def fall(self, step: int) -> float:
        """The cosine from 1 at the first step to 0 at the last."""
        return (1 + math.cos(math.pi * step / max(self.steps - 1, 1))) / 2

    def width(self, step: int) -> float:
        """The windows' width at a step, from 1 to 0."""
        return max(0.0, 1 - step / (self.smooth * self.steps)) if self.smooth else 0.0


class Search:
    """What is known of n samples: the point of smallest margin, that margin, and who is broken.

    `reaches` holds tensors of n rows, how far the activations' inputs of each sample move; `draws` is how
    often a random model is asked for one gradient.
    """

    def __init__(self, model: GradientAccess, batch: Batch, threat: ThreatModel, draws: int) -> None:
        self.model, self.batch, self.threat, self.draws = model, batch, threat, draws
        self.point = batch.x.clone()
        self.margin = torch.full((len(batch),), torch.inf).to(batch.x)
        self.broken = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
        self.reaches: list[Tensor] = []
        self.shared = draws > 1 and bool(len(batch)) and self._is_shared()

    def _is_shared(self) -> bool:
        """Whether a random model draws once for all that it is asked at once, as one random shift a batch.

        Then draws are asked for one by one.
        """
        twice = self.batch.x[:1].repeat(2, *[1] * (self.batch.x.dim() - 1))
        with torch.random.fork_rng():
            found = torch.stack([self.model.logits(twice, None) for _ in range(SEVERAL)])
        same = (found[:, 0] - found[:, 1]).abs().amax() <= 1e-5 * found.abs().amax()
        return bool(same) and not bool((found == found[0]).all())

    @property
    def live(self) -> Tensor:
        """The samples that still hold (k,)."""
        return (~self.broken).nonzero()[:, 0]

    def offer(self, owner: Tensor, point: Tensor, margins: Tensor, hit: Tensor, stage: str) -> None:
        """Takes over, per sample, the best of its chains: one that hit, else one of smaller margin."""
        score = torch.where(hit, -torch.inf, margins)
        order = torch.argsort(score, stable=True)
        order = order[torch.argsort(owner[order], stable=True)]
        ends = owner[order]
        first = torch.ones_like(ends, dtype=torch.bool)
        first[1:] = ends[1:] != ends[:-1]
        lead = order[first]
        mine = owner[lead]
        better = ~self.broken[mine] & (score[lead] < self.margin[mine])
        lead, mine = lead[better], mine[better]
        self.point[mine], self.margin[mine] = point[lead], margins[lead]
        self.broken[mine] = hit[lead]
        self.model.credit(mine[hit[lead]], stage)

    def look(
        self, z: Tensor, owner: Tensor, target: Tensor, reaches: list[Tensor] | None, width: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Margins (k,), whether each z is clearly misclassified (k,), and the ascent direction there.

        The objective is z_t - z_y, t the target or, where that is -1, the strongest rival.
        """
        if self.draws == 1:
            return self._seen(z, owner, target, reaches, width)
        if self.shared:
            found = [self._seen(z, owner, target, reaches, width) for _ in range(self.draws)]
            margins, wrong, gradient = (torch.stack(part) for part in zip(*found, strict=True))
        else:
            many = [_often(part, self.draws) for part in (z, owner, target, *(reaches or []))]
            seen = self._seen(many[0], many[1], many[2], many[3:], width)
            margins, wrong, gradient = (part.unflatten(0, (self.draws, -1)) for part in seen)
        wrong = self._confirmed(z, owner, wrong.double().mean(0))
        return margins.mean(0), wrong, gradient.mean(0)

    def _seen(
        self, z: Tensor, owner: Tensor, target: Tensor, reaches: list[Tensor] | None, width: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `look` returns of one draw."""
        y = self.batch.y[owner]

        def objective(logits: Tensor) -> Tensor:
            rivals = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
            return log_odds(logits, y, torch.where(target < 0, rivals, target))

        logits, gradient = self.model.smoothed_gradient(z, owner, objective, reaches, width)
        return -margin_loss(logits, y), clearly_wrong(logits, y), gradient

    def _confirmed(self, z: Tensor, owner: Tensor, share: Tensor) -> Tensor:
        """Whether a random model errs on most draws (k,): who seems so on a few is asked again.

        Of many looks the luckiest ends the search, and the judge draws afresh.
        """
        wrong = share > 0.5
        rows = wrong.nonzero()[:, 0]
        if len(rows):
            y, calls = self.batch.y[owner[rows]].repeat(AGAIN), AGAIN if self.shared else 1
            many, place = (_often(part, AGAIN // calls) for part in (z[rows], owner[rows]))
            logits = torch.cat([self.model.logits(many, place) for _ in range(calls)])
            again = clearly_wrong(logits, y).unflatten(0, (AGAIN, -1)).double().mean(0)
            wrong[rows] = again > SURELY
        return wrong

    def climb(self, owner: Tensor, start: Tensor, target: Tensor, course: Course, stage: str) -> Tensor:
        """Runs one chain from each `start` (k, ...) for its `owner` (k,), and books what they find.

        Returns each chain's smallest margin (k,); chains of a sample that another one broke stop short.
        """
        best, low = start.clone(), torch.full((len(owner),), torch.inf).to(start)
        hit = torch.zeros(len(owner), dtype=torch.bool, device=start.device)
        live = torch.arange(len(owner), device=start.device)
        z, speed, fallen = start, torch.zeros_like(start), self.broken.clone()
        project, reaches = self._fix(owner, course)
        course = replace(course, steps=PATIENCE * course.steps) if self.shared else course
        for step in range(course.steps + 1):
            mine = owner[live]
            margins, wrong, gradient = self.look(z, mine, target[live], reaches, course.width(step))
            better = (margins < low[live]) | wrong
            best[live[better]], low[live[better]], hit[live] = z[better], margins[better], wrong
            fallen[mine[wrong]] = True
            if step == course.steps:
                break
            keep = ~fallen[mine]
            if not bool(keep.all()):
                live, z, speed, gradient = live[keep], z[keep], speed[keep], gradient[keep]
                if not len(live):
                    break
                project, reaches = self._fix(owner[live], course)
            stuck = (gradient == 0).flatten(1).all(1)
            if bool(stuck.any()) and not self.model.dark:
                gradient[stuck] = self._astray(owner[live][stuck], step).to(gradient)
            speed = self._accelerate(speed, gradient, z, course.momentum)
            length = self.threat.radius * (course.last + (course.first - course.last) * course.fall(step))
            z = project(z + length * self._direction(speed, z, course.fall(step)))
        self.offer(owner, best, low, hit, stage)
        return low

    def _astray(self, owner: Tensor, step: int) -> Tensor:
        """A random direction (k, ...) where no gradient says one: what is flat here may not be elsewhere."""
        stream = Randomness(0).child("astray", step)
        return stream.sign(self.batch.index[owner], self.batch.x.shape[1:])

    def _fix(self, owner: Tensor, course: Course) -> tuple[Callable[[Tensor], Tensor], list[Tensor] | None]:
        """What depends on who is left: the projection and the windows, opened `breadth` times as wide."""
        reaches = [course.breadth * part[owner] for part in self.reaches] if course.smooth else None
        return self.threat.projection(self.batch.x[owner]), reaches

    def _accelerate(self, speed: Tensor, gradient: Tensor, z: Tensor, momentum: float) -> Tensor:
        if self.threat.norm != "linf":
            gradient = self.threat.box.tangent(z, gradient)
        size = vector_norm(gradient, "l1").clamp(min=torch.finfo(gradient.dtype).tiny)
        return momentum * speed + gradient / per_sample(size, gradient)

    def _direction(self, speed: Tensor, z: Tensor, fall: float) -> Tensor:
        """The direction of unit norm that `speed` names; in l1 ever fewer of its largest entries.

        Their number starts at 4 and ends at 0.3 times the entries that the radius could move across the box.
        """
        if self.threat.norm == "linf":
            return speed.sign()
        free = self.threat.box.tangent(z, speed)
        if self.threat.norm == "l2":
            return self.threat.steepest(free)
        flat = free.flatten(1)
        paid = self.threat.radius / self.threat.box.width
        count = min(max(1, round(paid * (SPARSEST + (DENSEST - SPARSEST) * fall))), flat.shape[1])
        top = flat.abs().topk(count, dim=1).indices
        signs = torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign())
        return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).reshape(z.shape)


def _often(part: Tensor, times: int) -> Tensor:
    """The rows (k, ...) that many times, one copy after the other."""
    return part.repeat(times, *[1] * (part.dim() - 1))
