"""EAD: an l1 and an l2 penalty on the change at once, by accelerated shrinkage steps within the box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.cw import Penalties
from attacks.losses import against, margin_loss, rounding
from attacks.nearest import Best, closer
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, per_sample, vector_norm


def shrunk(z: Tensor, x: Tensor, by: float, box: Box) -> Tensor:
    """S_beta of eq. 7: z moved towards x by `by` in every entry, x where it was no farther, and into the box.

    The least of ||p - z||_2^2 / 2 + by ||p - x||_1 over p in the box.
    """
    delta = z - x
    return torch.where(delta.abs() <= by, x, box.clamp(z - by * delta.sign()))


@register_attack("ead")
@dataclass(frozen=True, kw_only=True)
class ElasticNet(Attack):
    """Finds a near misclassified point in l1 under an elastic-net penalty, by shrinkage and thresholding.

    Minimises c max(z_y - max_{j != y} z_j + confidence, 0) + ||x' - x||_2^2 + beta ||x' - x||_1 by FISTA:
    x_{k+1} = S_beta(y_k - a_k grad g(y_k)), y_{k+1} = x_{k+1} + k / (k + 3) (x_{k+1} - x_k), lengths in box
    widths, a_k = `learning_rate` (1 - k / steps)^(1/2), g all but the l1 term. As in the paper S_beta takes
    beta, not a_k beta, so that l1 weighs beta / a_k: a larger beta comes nearer. Of the misclassified y_k,
    which cost no pass of their own, the one of least l1 distance is kept (the decision rule "L1"); to judge
    x_k wins 0.5 % for half as many passes again. c is searched per sample in `rounds` rounds, from where the
    gradient's largest entry balances l1, not from 0.001. A sample leaves a round after `patience` steps
    that lower neither its objective by 0.1 % nor its distance. Rounds start at x: from DeepFool's point they
    end hardly nearer than that point. `halvings` forward passes bisect the way back to x at the end, which
    the paper does not. With an eps a sample is done once it is within, and a farther point is handed over
    projected on the ball.
    Source: Chen, Sharma, Zhang, Yi, Hsieh 2018, 1709.04114, algorithm 1 and eq. 7.
    """

    paper = "Chen, Sharma, Zhang, Yi, Hsieh 2018, 1709.04114"
    norms = ("l1",)
    minimal = True
    cost = Cost.MEDIUM

    beta: float = 0.01
    rounds: int = 9
    steps: int = 100
    learning_rate: float = 0.01
    confidence: float = 0.0
    patience: int = 30
    halvings: int = 6

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.learning_rate <= 0 or self.confidence < 0:
            raise UserError(
                "ead needs beta > 0, learning_rate > 0 and confidence >= 0, "
                f"not {self.beta:g}, {self.learning_rate:g} and {self.confidence:g}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        rows, best = torch.arange(len(batch), device=batch.x.device), Best.none(batch.x)
        _, _, slope = model.gradient(batch.x, rows, against(margin_loss, batch.y))
        steepest = vector_norm(slope, "linf") * threat.box.width
        penalties = Penalties(self.beta / self.learning_rate / steepest.clamp(min=1e-20))
        goal = -1.0 if threat.eps is None else threat.eps
        for _ in range(self.rounds):
            penalties.update(self._descend(model, batch, threat, penalties.weight, best, goal))
        if not self.confidence:
            closer(model, batch, rows[best.distance > goal], threat, best, self.halvings)
        return threat.project(batch.x, best.point)

    def _descend(
        self,
        model: GradientAccess,
        batch: Batch,
        threat: ThreatModel,
        weight: Tensor,
        best: Best,
        goal: float,
    ) -> Tensor:
        """One round at penalty `weight` (n,): whether a sample succeeded in it (n,)."""
        live, width = (best.distance > goal).nonzero()[:, 0], threat.box.width
        point = z = batch.x[live]
        lowest, stalled = torch.full_like(weight, torch.inf), torch.zeros_like(batch.y)
        success = torch.zeros_like(batch.y, dtype=torch.bool)
        for k in range(self.steps):
            if not len(live):
                break
            x, c = batch.x[live], weight[live]
            logits, value, slope = model.gradient(z, live, against(margin_loss, batch.y[live]))
            slack, distance = rounding(logits), vector_norm(z - x, "l1")
            wrong = value > slack + self.confidence
            nearer = wrong & (distance < best.distance[live])
            best.offer(live, z, distance, wrong)
            success[live] |= wrong
            hinge = (self.confidence + 2 * slack - value).clamp(min=0)
            penalty = vector_norm((z - x) / width, "l2").square() + self.beta * distance / width
            objective = penalty + c * hinge
            fell = objective < lowest[live] * (1 - 1e-3)
            lowest[live] = torch.where(fell, objective, lowest[live])
            stalled[live] = torch.where(fell | nearer, 0, stalled[live] + 1)
            rate = self.learning_rate * (1 - k / self.steps) ** 0.5
            pull = 2 * (z - x) - width**2 * per_sample(c * (hinge > 0), x) * slope
            ahead = shrunk(z - rate * pull, x, self.beta * width, threat.box)
            z = threat.box.clamp(ahead + k / (k + 3) * (ahead - point))
            going = (stalled[live] < self.patience) & (best.distance[live] > goal)
            live, z, point = live[going], z[going], ahead[going]
        return success
