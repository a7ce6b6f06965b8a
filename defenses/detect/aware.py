"""The adversary that knows the detector: misclassified and not flagged, or it has lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.losses import margin_loss
from defenses.detect.detector import Alarm
from models.base import Batch, Classifier, frozen
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, check_reach, per_sample


@dataclass(frozen=True, kw_only=True)
class Aware:
    """Ascends min(max_{j != y} z_j - z_y, enough) - weight max(score - threshold, 0) / spread.

    One run of `steps` for each of the `weights` from each start: the input, a random point of the ball and
    the point of an adversary that knew nothing. Steps fall from a tenth to a hundredth of the radius. A
    sample leaves as soon as it is misclassified and not flagged, so that it is broken at least where the
    other was. Once misclassified by `enough`, only the score is left to lower.
    Source: Carlini, Wagner 2017, 1705.07263, section 2 (the loss); the cap is this project's.
    """

    steps: int = 30
    weights: tuple[float, ...] = (1.0, 10.0)
    enough: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.weights or min(self.weights) <= 0:
            raise UserError("the aware adversary needs at least one step and positive weights")

    def run(
        self,
        model: Classifier,
        alarm: Alarm,
        batch: Batch,
        threat: ThreatModel,
        randomness: Randomness,
        known: Tensor,
    ) -> Tensor:
        """Points (n, ...) of the threat's set; `known` (n, ...) are those of an unaware adversary.

        Where nothing evades, the misclassified point of lowest score, or else `known`. Raises UserError for
        a threat without eps or one beyond the box.
        """
        if threat.eps is None:
            raise UserError("the aware adversary needs an eps")
        check_reach(threat, batch.x)
        with frozen(model):
            best = Best.starting(model, alarm, batch, threat, known)
            for weight in self.weights:
                for start in ("known", "input", "random"):
                    rows = (~best.evaded).nonzero()[:, 0]
                    if not len(rows):
                        return best.point
                    x = {"known": known, "input": batch.x}.get(start, batch.x)[rows]
                    if start == "random":
                        x = threat.sample(x, batch.index[rows], randomness.child("aware", str(weight)))
                    self._climb(best, rows, x, weight)
        return best.point

    def _climb(self, best: Best, rows: Tensor, z: Tensor, weight: float) -> None:
        for step in range(self.steps):
            gradient = self._gradient(best, rows, z, weight)
            size = best.threat.radius * 0.1 ** (1 + step / max(self.steps - 1, 1))
            ahead = z + size * best.threat.steepest(gradient)
            z = best.threat.project(best.batch.x[rows], ahead).detach()
            best.offer(rows, z)
            live = ~best.evaded[rows]
            rows, z = rows[live], z[live]
            if not len(rows):
                return

    def _gradient(self, best: Best, rows: Tensor, z: Tensor, weight: float) -> Tensor:
        z = z.detach().requires_grad_(True)
        with torch.enable_grad():
            wrong = margin_loss(best.model.differentiable_logits(z), best.batch.y[rows])
            score = best.alarm.score.differentiable(z)
            excess = (score - best.alarm.threshold) / max(best.alarm.spread, 1e-12)
            loss = wrong.clamp(max=self.enough) - weight * excess.clamp(min=0)
            (gradient,) = torch.autograd.grad(loss.sum(), z)
        return gradient.nan_to_num(0.0, 0.0, 0.0)


@dataclass
class Best:
    """The best legal point of each sample so far: evading, else misclassified with the lowest score."""

    model: Classifier
    alarm: Alarm
    batch: Batch
    threat: ThreatModel
    point: Tensor
    score: Tensor
    evaded: Tensor

    @staticmethod
    def starting(model: Classifier, alarm: Alarm, batch: Batch, threat: ThreatModel, known: Tensor) -> Best:
        """Nothing but what was `known` (n, ...), where that is legal."""
        legal = threat.contains(batch.x, known)
        point = torch.where(per_sample(legal, known), known, batch.x)
        nothing = torch.full((len(batch),), torch.inf, device=batch.x.device)
        best = Best(model, alarm, batch, threat, point.clone(), nothing, nothing < 0)
        best.offer(torch.arange(len(batch), device=batch.x.device), point)
        return best

    def offer(self, rows: Tensor, z: Tensor) -> None:
        """Takes the points `z` (k, ...) of the samples `rows` (k,) that are better than what is there."""
        with torch.no_grad():
            wrong = self.model.logits(z).argmax(1) != self.batch.y[rows]
            score = self.alarm.score(z).to(self.score)
        better = wrong & (score < self.score[rows]) & self.threat.contains(self.batch.x[rows], z)
        chosen = rows[better]
        self.point[chosen], self.score[chosen] = z[better], score[better]
        self.evaded[chosen] = score[better] <= self.alarm.threshold
