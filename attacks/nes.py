"""NES: steepest ascent on gradients that are estimated from scores along Gaussian directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import ScoreAccess
from attacks.base import Attack, register_attack
from attacks.losses import aimed, check_loss, clearly_wrong
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample

ENTRIES = 20_000_000
"""Finite differences are asked for in groups of at most so many numbers, which bounds the memory."""
Draw = Callable[[Randomness, Tensor, torch.Size], Tensor]
Rule = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Estimator:
    """The gradient of `loss` from `pairs` pairs of scores a sample, `width` away along u and -u.

    `draw`(randomness, keys (m,), shape) makes the directions u (m, *shape), E[u u^T] = I. The estimate is
    (1 / (2 sigma n)) sum_k (J(x + sigma u_k) - J(x - sigma u_k)) u_k. Points are clipped to the box, since
    an oracle may refuse others; each entry is therefore divided by the share of its moves that the clip
    leaves (1 inside, 1/2 at a bound), without which saturated pixels would count half.
    """

    draw: Draw
    loss: str
    pairs: int
    width: float

    def __call__(
        self,
        model: ScoreAccess,
        z: Tensor,
        batch: Batch,
        rows: Tensor,
        threat: ThreatModel,
        randomness: Randomness,
    ) -> Tensor:
        """The estimate (k, ...) at the points z of the samples `rows` (k,): 2 * pairs queries each."""
        group = max(min(ENTRIES // z.numel(), self.pairs), 1)
        rise, moved, length = (torch.zeros_like(z) for _ in range(3))
        for first in range(0, self.pairs, group):
            pair = torch.arange(first, min(first + group, self.pairs), device=z.device)
            keys = (batch.index[rows, None] * self.pairs + pair).flatten()
            u = self.draw(randomness, keys, z.shape[1:]).to(z)
            here, asked = z.repeat_interleave(len(pair), 0), rows.repeat_interleave(len(pair)).repeat(2)
            plus, minus = (threat.box.clamp(here + sign * self.width * u) for sign in (1, -1))
            values = aimed(self.loss, batch.y[asked], None)(model.logits(torch.cat([plus, minus]), asked))
            up, down = values.chunk(2)
            by_sample = (len(z), len(pair), *z.shape[1:])
            rise += (per_sample(up - down, u) * u).reshape(by_sample).sum(1)
            moved += ((plus - minus) * u).reshape(by_sample).sum(1)
            length += (2 * self.width * u * u).reshape(by_sample).sum(1)
        share = (moved / length.clamp(min=1e-30)).clamp(min=0.5, max=1.0)
        return rise / (2 * self.width * self.pairs * share)


def climb(
    model: ScoreAccess,
    batch: Batch,
    threat: ThreatModel,
    randomness: Randomness,
    estimator: Estimator,
    rule: Rule,
    *,
    queries: int,
) -> Tensor:
    """Projected ascent along `rule`'s steps from the clean inputs, at most `queries` queries a sample.

    rule(estimate, state (2, k, ...), t) gives the step and the next state. A step costs 2 * pairs queries
    and one more to look at the new point; a sample leaves as soon as that is misclassified. Returns it, or
    else the last point (n, ...).
    """
    point, live = batch.x.clone(), torch.arange(len(batch), device=batch.x.device)
    state, project = torch.zeros(2, *point.shape).to(point), threat.projection(batch.x)
    for step in range(1, queries // (2 * estimator.pairs + 1) + 1):
        z = point[live]
        estimate = estimator(model, z, batch, live, threat, randomness.child("step", step))
        move, state = rule(estimate, state, step)
        point[live] = z = project(z + move)
        staying = ~clearly_wrong(model.logits(z, live), batch.y[live])
        if not bool(staying.all()):
            live, state = live[staying], state[:, staying]
            if not len(live):
                break
            project = threat.projection(batch.x[live])
    return point


def check_estimate(name: str, queries: int, samples: int, width: float, loss: str) -> None:
    """Raises UserError for settings that no estimate can be made of."""
    if samples < 2 or samples % 2 or queries <= samples or not width > 0:
        raise UserError(
            f"{name} needs an even number of samples >= 2, queries > samples and a width > 0, "
            f"not {samples}, {queries} and {width:g}"
        )
    check_loss(loss, name)


@register_attack("nes")
@dataclass(frozen=True, kw_only=True)
class NES(Attack):
    """Ascends a gradient estimated from scores alone along antithetic Gaussian directions.

    x <- Proj(x + a steepest(m)), m the mean of the estimates decayed by `decay` (authors' code: 0.9). An
    estimate asks `samples` points, sigma = `width` box widths away, half of them mirror images; with the
    point itself a step costs samples + 1 queries, and no sample gets more than `queries`. Sorted, the
    counts of forward passes are the curve of accuracy against queries. The paper's sigma is 0.001, where
    float32 scores lose digits. `relative_step` is a in units of eps.
    Source: Ilyas, Engstrom, Athalye, Lin 2018, 1804.08598, algorithm 1 and section 2.2.
    """

    paper = "Ilyas, Engstrom, Athalye, Lin 2018, 1804.08598"
    norms = ("linf", "l2")
    access = "scores"
    cost = Cost.EXPENSIVE

    queries: int = 5000
    samples: int = 50
    width: float = 0.01
    relative_step: float = 0.1
    decay: float = 0.9
    loss: str = "margin"

    def __post_init__(self) -> None:
        check_estimate(self.name, self.queries, self.samples, self.width, self.loss)

    def propose(
        self, model: ScoreAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        def rule(estimate: Tensor, state: Tensor, step: int) -> tuple[Tensor, Tensor]:
            mean = self.decay * state[0] + (1 - self.decay) * estimate
            return self.relative_step * threat.radius * threat.steepest(mean), torch.stack([mean, mean])

        estimator = Estimator(Randomness.normal, self.loss, self.samples // 2, self.width * threat.box.width)
        return climb(model, batch, threat, randomness, estimator, rule, queries=self.queries)
