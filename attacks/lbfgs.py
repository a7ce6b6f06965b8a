"""Box-constrained L-BFGS: the oldest search for the smallest perturbation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.cw import Penalties
from attacks.losses import aimed, clearly_wrong, least_likely
from attacks.nearest import Best, closer
from attacks.targets import LEAST_LIKELY, check_target, targets
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, vector_norm

RUNNER_UP = "runner-up"


@register_attack("lbfgs")
@dataclass(frozen=True, kw_only=True)
class BoxConstrainedLBFGS(Attack):
    """Minimises squared distance plus c times a loss over the box by L-BFGS-B, for the least c that succeeds.

    ||x' - x||_2^2 + c J(x', target), J the cross-entropy towards `target`: "runner-up" (each sample's
    second class), "least-likely" or a class number. c starts where the linearised margin would close, is
    multiplied by 10 until the minimiser is misclassified and bisected then, `rounds` times in all; each
    minimisation takes at most `steps` iterations, the first one from x and each other one from the
    minimiser before. Lengths are in box widths. The nearest misclassified point of all that were
    evaluated is kept, and `halvings` forward passes bisect the way back from it, which the paper does
    not. Success is judged as misclassification. Samples run one by one: this is for comparison with
    published tables, not the way to small perturbations.
    Source: Szegedy et al. 2014, 1312.6199, section 4.1, whose c weighs |r|: here it weighs the loss.
    """

    paper = "Szegedy et al. 2014, 1312.6199"
    norms = ("l2",)
    minimal = True
    cost = Cost.EXPENSIVE

    rounds: int = 8
    steps: int = 30
    target: str = RUNNER_UP
    halvings: int = 6

    def __post_init__(self) -> None:
        check_target(self.target, "lbfgs", RUNNER_UP, LEAST_LIKELY)
        if self.rounds < 1 or self.steps < 1:
            raise UserError(f"lbfgs needs rounds and steps >= 1, not {self.rounds} and {self.steps}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best = Best.none(batch.x)
        if self.target not in (RUNNER_UP, LEAST_LIKELY):
            targets(model, batch, self.target)  # Refuses classes that no sample can be driven at.
        for row in torch.arange(len(batch), device=batch.x.device).split(1):
            self._search(model, batch, row, threat, best)
        return threat.project(batch.x, best.point)

    def _search(
        self, model: GradientAccess, batch: Batch, row: Tensor, threat: ThreatModel, best: Best
    ) -> None:
        sample, width = batch[row], threat.box.width
        aim = self._aim(model, sample, row)
        _, value, slope = model.gradient(sample.x, row, aimed("log-odds", sample.y, aim))
        penalties = Penalties(
            2 * value.abs() / (vector_norm(slope, "l2").square() * width**2).clamp(min=1e-20)
        )
        loss, start = aimed("ce", sample.y, aim), ((sample.x.double() - threat.box.lower) / width).flatten()
        place = start.cpu().numpy()
        for _ in range(self.rounds):
            weight = float(penalties.weight)
            place, wrong = self._minimise(model, sample, row, threat, loss, weight, best, place)
            penalties.update(wrong)
        closer(model, batch, row, threat, best, self.halvings)

    def _aim(self, model: GradientAccess, sample: Batch, row: Tensor) -> Tensor:
        """The class to drive one sample at (1,)."""
        if self.target not in (RUNNER_UP, LEAST_LIKELY):
            return torch.full_like(sample.y, int(self.target))
        logits = model.logits(sample.x, row)
        if self.target == LEAST_LIKELY:
            return least_likely(logits)
        return logits.scatter(1, sample.y[:, None], -torch.inf).argmax(1)

    def _minimise(
        self,
        model: GradientAccess,
        sample: Batch,
        row: Tensor,
        threat: ThreatModel,
        loss: Callable[[Tensor], Tensor],
        weight: float,
        best: Best,
        start: np.ndarray,
    ) -> tuple[np.ndarray, Tensor]:
        """The minimiser (d,) at one c for one `sample`, and whether it is misclassified (1,)."""
        evaluate = partial(_evaluate, model, sample, row, threat, loss, weight, best)
        found = minimize(
            evaluate,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * start.size,
            options={"maxiter": self.steps},
        )
        point = _placed(found.x, sample.x, threat)
        wrong = clearly_wrong(model.logits(point, row), sample.y)
        best.offer(row, point, threat.distance(sample.x, point), wrong)
        return found.x, wrong


def _placed(place: np.ndarray, x: Tensor, threat: ThreatModel) -> Tensor:
    """The input (1, ...) at `place` (d,), in [0, 1] from bound to bound."""
    moved = torch.as_tensor(place, device=x.device).reshape(x.shape)
    return threat.box.clamp((threat.box.lower + threat.box.width * moved).to(x))


def _evaluate(
    model: GradientAccess,
    sample: Batch,
    row: Tensor,
    threat: ThreatModel,
    loss: Callable[[Tensor], Tensor],
    weight: float,
    best: Best,
    place: np.ndarray,
) -> tuple[float, np.ndarray]:
    """||u - u_x||^2 + c J and its gradient at `place` u (d,) in the box scaled to [0, 1]."""
    z, width = _placed(place, sample.x, threat), threat.box.width
    logits, value, slope = model.gradient(z, row, loss)
    best.offer(row, z, threat.distance(sample.x, z), clearly_wrong(logits, sample.y))
    # `aimed` gives what rises towards the target: the negated loss.
    move = (z.double() - sample.x.double()) / width
    objective = float(move.square().sum()) - weight * float(value)
    gradient = 2 * move - weight * width * slope.double()
    return objective, gradient.flatten().cpu().numpy()
