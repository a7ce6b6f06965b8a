"""APGD: projected gradient ascent that halves its own step where the loss stops rising."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import LOSSES, against, clearly_wrong, log_odds
from attacks.vertices import likeliest, vertices
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample

MOMENTUM = 0.75
RISES = 0.75
L1_SHRINK = 1.5
L1_SPARSITY = 0.2
# One of so many steps is spent on a vertex. A linear network falls there or nowhere, and sparse steps from a
# random start miss some of those vertices; starting at one costs more samples on deep networks than it gains.
L1_VERTICES = 20
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def checkpoints(steps: int) -> list[int]:
    """The steps w_j = ceil(p_j N) at which step sizes are decided (2003.01690, section 3.1).

    p_0 = 0, p_1 = 0.22 and p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).
    """
    places, before, now = [0], 0, 22
    while now <= 100:
        places.append(-(-now * steps // 100))
        before, now = now, now + max(now - before - 3, 6)
    return sorted(set(places))


def sparse_steepest(gradient: Tensor, z: Tensor, threat: ThreatModel, kept: Tensor) -> Tensor:
    """The signs of each sample's `kept` (n,) steepest entries that the box leaves free, of l1 norm 1.

    Source: Croce, Hein 2021, 2103.01208, section 3.2.
    """
    flat = threat.box.tangent(z, gradient).flatten(1)
    rank = flat.abs().argsort(1, descending=True).argsort(1)
    signs = flat.sign() * (rank < kept[:, None])
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).reshape(gradient.shape)


@dataclass
class Ascent:
    """One run on k samples: current point, previous point, best point and its gradient, steps and tallies.

    All tensors have k rows, and `keep` drops those that are done. kept and sparsity matter in l1 alone.
    """

    rows: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    z: Tensor
    before: Tensor
    best: Tensor
    slope: Tensor
    highest: Tensor
    size: Tensor
    last: Tensor
    rises: Tensor
    unchanged: Tensor
    highest_then: Tensor
    kept: Tensor
    sparsity: Tensor

    @classmethod
    def start(cls, batch: Batch, rows: Tensor, z: Tensor, target: Tensor, size: float) -> Self:
        """The state before the first look at the model, with steps of length `size`."""
        zeros = torch.zeros(len(rows), device=z.device)
        entries = float(z[0].numel())
        return cls(
            rows=rows,
            x=batch.x[rows],
            y=batch.y[rows],
            target=target,
            z=z,
            before=z,
            best=z.clone(),
            slope=torch.zeros_like(z),
            highest=zeros - torch.inf,
            size=zeros + size,
            last=zeros - torch.inf,
            rises=zeros.clone(),
            unchanged=zeros > 0,
            highest_then=zeros - torch.inf,
            kept=zeros + math.ceil(L1_SPARSITY * entries),
            sparsity=zeros + entries,
        )

    def keep(self, mask: Tensor) -> None:
        """Forgets the samples outside `mask` (k,)."""
        for name, value in vars(self).items():
            setattr(self, name, value[mask])

    def see(self, value: Tensor, gradient: Tensor) -> None:
        """Books the loss (k,) and gradient at the current point."""
        self.rises += value > self.last
        self.last = value
        better = value > self.highest
        shaped = per_sample(better, self.z)
        self.best = torch.where(shaped, self.z, self.best)
        self.slope = torch.where(shaped, gradient, self.slope)
        self.highest = torch.where(better, value, self.highest)

    def restart(self, where: Tensor, gradient: Tensor) -> Tensor:
        """Puts the samples `where` (k,) back at their best point; the gradient there."""
        shaped = per_sample(where, self.z)
        self.z = torch.where(shaped, self.best, self.z)
        self.before = torch.where(shaped, self.z, self.before)
        self.last = torch.where(where, self.highest, self.last)
        return torch.where(shaped, self.slope, gradient)

    def decide(self, span: int) -> Tensor:
        """Halves steps at a checkpoint `span` steps after the last one; whose step was halved (k,).

        Condition 1: fewer than 0.75 span rises. Condition 2: neither step nor best loss has changed.
        """
        few = self.rises < RISES * span
        stuck = self.unchanged & (self.highest_then >= self.highest)
        halve = few | stuck
        self.size = torch.where(halve, self.size / 2, self.size)
        self.unchanged, self.highest_then = ~halve, self.highest.clone()
        self.rises = torch.zeros_like(self.rises)
        return halve

    def decide_l1(self, radius: float) -> Tensor:
        """Adapts sparsity and step in l1 (2103.01208, algorithm 1): all samples restart from their best."""
        moved = (self.best != self.x).flatten(1).sum(1).to(self.size)
        sparser = moved / self.sparsity < 0.95
        self.kept = (moved / 1.5).clamp(min=1)
        self.size = torch.where(
            sparser, torch.full_like(self.size, radius), (self.size / L1_SHRINK).clamp(min=radius / 10)
        )
        self.sparsity = moved.clamp(min=1)
        return torch.ones_like(sparser)

    def move(
        self, threat: ThreatModel, project: Callable[[Tensor], Tensor], gradient: Tensor, heavy: bool
    ) -> None:
        """One projected step, with momentum where `heavy`; never with momentum in l1."""
        length = per_sample(self.size, self.z)
        if threat.norm == "l1":
            step = sparse_steepest(gradient, self.z, threat, self.kept)
            self.before, self.z = self.z, project(self.z + length * step)
            return
        goal = project(self.z + length * threat.steepest(gradient))
        if heavy:
            goal = project(self.z + MOMENTUM * (goal - self.z) + (1 - MOMENTUM) * (self.z - self.before))
        self.before, self.z = self.z, goal


def ascend(
    model: GradientAccess,
    batch: Batch,
    rows: Tensor,
    start: Tensor,
    target: Tensor,
    threat: ThreatModel,
    *,
    objective: Objective,
    steps: int,
    kind: type[Ascent] = Ascent,
) -> tuple[Tensor, Tensor]:
    """APGD from `start` (k, ...) on the samples `rows`; each leaves when it is clearly misclassified.

    Returns the misclassified point, or else the one of greatest loss (k, ...), and which it is (k,).
    """
    state = kind.start(batch, rows, start, target, threat.radius * (1 if threat.norm == "l1" else 2))
    final, broken = start.clone(), torch.zeros(len(rows), dtype=torch.bool, device=start.device)
    place = torch.arange(len(rows), device=start.device)
    every = max(round(0.04 * steps), 1)
    marks = list(range(0, steps, every)) if threat.norm == "l1" else checkpoints(steps)
    project = threat.projection(state.x)
    for step in range(steps + 1):
        y, goal = state.y, state.target
        logits, value, gradient = model.gradient(
            state.z,
            state.rows,
            lambda z, y=y, goal=goal: objective(z, y, goal),  # type: ignore[misc]
        )
        state.see(value, gradient)
        wrong = clearly_wrong(logits, y)
        final[place], broken[place] = torch.where(per_sample(wrong, state.z), state.z, state.best), wrong
        if step == steps or bool(wrong.all()):
            break
        if bool(wrong.any()):
            place, gradient = place[~wrong], gradient[~wrong]
            state.keep(~wrong)
            project = threat.projection(state.x)
        if step in marks[1:]:
            span = step - marks[marks.index(step) - 1]
            halved = state.decide_l1(threat.radius) if threat.norm == "l1" else state.decide(span)
            gradient = state.restart(halved, gradient)
        state.move(threat, project, gradient, heavy=step > 0)
    return final, broken


@register_attack("apgd")
@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Projected gradient ascent with momentum that chooses its step sizes by itself, per sample.

    x_{t+1} = Proj(x_t + 0.75 (Proj(x_t + a_t steepest(grad J)) - x_t) + 0.25 (x_t - x_{t-1})), a_0 = 2 eps.
    At each checkpoint a sample whose loss rose in too few steps, or whose best loss has not changed,
    halves its step and goes on from its best point. In l1: sparse steps without momentum (2103.01208), and
    first, for one step in 20, a look at the vertex that is worst for each of the likeliest rivals.
    `loss`: "ce", "margin", "dlr" (the difference-of-logits ratio, the margin below 4 classes) or "targeted"
    (z_t - z_y for the `targets` likeliest classes t in turn). A sample leaves when it is misclassified
    by more than rounding; the paper lets it take all steps.
    Source: Croce, Hein 2020, 2003.01690, algorithm 1 and section 4; l1: Croce, Hein 2021, 2103.01208.
    """

    paper = "Croce, Hein 2020, 2003.01690"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    cost = Cost.MEDIUM

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    targets: int = 9
    kind: ClassVar[type[Ascent]] = Ascent

    def __post_init__(self) -> None:
        known = (*LOSSES, "targeted")
        if self.loss not in known:
            raise UserError(f"{self.name} has no loss '{self.loss}': it has {', '.join(known)}")
        if min(self.steps, self.restarts, self.targets) < 1:
            raise UserError(f"{self.name} needs steps, restarts and targets of at least 1")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, rows, spent = batch.x.clone(), torch.arange(len(batch), device=batch.x.device), 0
        if threat.norm == "l1":
            aims = likeliest(model, batch, min(self.targets, max(self.steps // L1_VERTICES, 1)))
            best, broken = vertices(model, batch, threat, aims)
            rows, spent = rows[~broken], aims.shape[1]
        rivals = self._rivals(model, batch)
        for run in range(self.restarts * rivals.shape[1]):
            if not len(rows):
                break
            stream = randomness.child("restart", run)
            found, broken = ascend(
                model,
                batch,
                rows,
                threat.sample(batch.x[rows], batch.index[rows], stream),
                rivals[rows, run % rivals.shape[1]],
                threat,
                objective=self._objective(),
                steps=self.steps if run else max(self.steps - spent, 1),
                kind=self.kind,
            )
            replace = broken if run else torch.ones_like(broken)
            best[rows] = torch.where(per_sample(replace, found), found, best[rows])
            rows = rows[~broken]
        return best

    def _rivals(self, model: GradientAccess, batch: Batch) -> Tensor:
        """The classes to aim at (n, runs): one column of unused zeros where the loss has no target."""
        if self.loss != "targeted":
            return torch.zeros(len(batch), 1, dtype=torch.int64, device=batch.x.device)
        return likeliest(model, batch, self.targets)

    def _objective(self) -> Objective:
        if self.loss == "targeted":
            return log_odds
        return lambda logits, y, _: against(LOSSES[self.loss], y)(logits)
