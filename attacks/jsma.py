"""The Jacobian saliency map attack: pairs of features set to a bound, the best pair first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import cross_entropy, rounding
from attacks.pairs import best_pair
from attacks.targets import LEAST_LIKELY, check_target, targets
from models.base import Batch, margin
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

ANY = "any"


@dataclass
class Runs:
    """The runs still going, one a sample and target: row (k,), target (k,), point (k, ...)."""

    row: Tensor
    target: Tensor
    point: Tensor

    def keep(self, mask: Tensor) -> Runs:
        return Runs(self.row[mask], self.target[mask], self.point[mask])


@register_attack("jsma")
@dataclass(frozen=True, kw_only=True)
class JSMA(Attack):
    """Sets features to a bound, two at a time: the pair of largest saliency for a target class.

    With a = d F_t / d x and b = sum_{j != t} d F_j / d x the pair maximises -(a_p + a_q)(b_p + b_q) subject
    to a_p + a_q > 0 and b_p + b_q < 0, exactly (see attacks/pairs.py). `theta` = 1 raises features to the
    upper bound, -1 lowers them with both signs turned. A feature at its bound has left the search, and a
    run ends where no pair is feasible. F is what `outputs` names: "probabilities", for which b = -a and one
    backward pass a step suffices, or "logits" as the paper advises, for two. On the shipped lenet the
    probabilities reach 99 % of all targets with 4.2 % of the features on average, the logits 83 %
    with 7.1 %; the paper reports 97 % and 4.0 % on its own network.
    `target`: "any" runs the `classes` - 1 likeliest other classes side by side and ends a sample at its first
    misclassification, so that the target that needs fewest pairs wins; "least-likely" or a class number
    ends it when that class is reached (success is judged as misclassification). The budget is eps
    entries, or the share `gamma` of the entries without an eps; pairs make it even.
    Source: Papernot et al. 2016, 1511.07528, algorithms 2 and 3.
    """

    paper = "Papernot et al. 2016, 1511.07528"
    norms = ("l0",)
    minimal = True

    target: str = ANY
    outputs: str = "probabilities"
    theta: int = 1
    gamma: float = 0.145
    classes: int = 10

    def __post_init__(self) -> None:
        check_target(self.target, "jsma", ANY, LEAST_LIKELY)
        if self.outputs not in ("probabilities", "logits"):
            raise UserError(f"jsma has no outputs '{self.outputs}': write 'probabilities' or 'logits'")
        if self.theta not in (1, -1):
            raise UserError(f"jsma needs theta 1 (raise features) or -1 (lower them), not {self.theta}")
        if not 0 < self.gamma <= 1 or self.classes < 2:
            raise UserError(
                f"jsma needs 0 < gamma <= 1 and classes >= 2, not {self.gamma} and {self.classes}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, entries = batch.x.clone(), batch.x[0].numel()
        budget = int(self.gamma * entries) if threat.eps is None else min(int(threat.eps), entries)
        bound = threat.box.upper if self.theta > 0 else threat.box.lower
        runs = self._open(model, batch)
        for step in range(budget // 2 + 1):
            logits, a, c = self._saliency(model, runs, last=step == budget // 2)
            won = self._won(logits, batch.y[runs.row], runs.target)
            # The first of a sample's runs that arrive at the same step.
            for place in won.nonzero()[:, 0].flip(0).tolist():
                best[runs.row[place]] = runs.point[place]
            going = ~torch.isin(runs.row, runs.row[won])
            if step == budget // 2 or not bool(going.any()):
                break
            runs, flat = runs.keep(going), runs.point[going].flatten(1)
            p, q, score = best_pair(a[going], c[going], flat != bound)
            feasible = torch.isfinite(score)
            pair = torch.stack([p, q], 1)
            runs.point = flat.scatter(1, pair, bound).reshape(runs.point.shape)
            runs = runs.keep(feasible)
            if not len(runs.row):
                break
        return best

    def _open(self, model: GradientAccess, batch: Batch) -> Runs:
        rows = torch.arange(len(batch), device=batch.x.device)
        if self.target != ANY:
            aim = targets(model, batch, self.target)
            assert aim is not None
            return Runs(rows, aim, batch.x)
        rivals = model.logits(batch.x, rows).scatter(1, batch.y[:, None], -torch.inf)
        count = min(self.classes, model.num_classes) - 1
        aims = rivals.topk(count, dim=1).indices
        every = rows.repeat_interleave(count)
        return Runs(every, aims.flatten(), batch.x[every])

    def _saliency(self, model: GradientAccess, runs: Runs, *, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and theta a and -theta b (k, d); nothing but the logits at the last step."""
        point, row, target = runs.point, runs.row, runs.target
        if last:
            none = point.new_zeros(len(row), 0)
            return model.logits(point, row), none, none
        if self.outputs == "probabilities":
            # grad ln F_t is grad F_t up to a positive factor, and does not vanish where F_t does.
            logits, _, slope = model.gradient(point, row, lambda logits: -cross_entropy(logits, target))
            return logits, self.theta * slope.flatten(1), self.theta * slope.flatten(1)
        one = point.new_zeros(len(row), model.num_classes).scatter_(1, target[:, None], 1.0)
        logits, slopes = model.jacobian(point, row, torch.stack([one, 1 - one]))
        towards, others = slopes.flatten(2)
        return logits, self.theta * towards, -self.theta * others

    def _won(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        ahead = -margin(logits, y) if self.target == ANY else margin(logits, target)
        return ahead > rounding(logits)
