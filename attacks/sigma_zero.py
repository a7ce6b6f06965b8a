"""Sigma-zero: descent on a smooth count of changed entries, with small changes taken back at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.fmn import cosine
from attacks.losses import against, margin_loss, rounding
from attacks.nearest import Best, closer
from attacks.unbounded import Adam
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm


def smooth_count_slope(delta: Tensor, sigma: float) -> Tensor:
    """The gradient of sum_i delta_i^2 / (delta_i^2 + sigma), which counts entries above sigma^0.5."""
    return 2 * sigma * delta / (delta.square() + sigma).square()


@register_attack("sigma-zero")
@dataclass(frozen=True, kw_only=True)
class SigmaZero(Attack):
    """Descends on margin and a smooth count of changed entries, and takes back changes below a threshold.

    Minimises max(z_y - max_{j != y} z_j, 0) + (1 / d) sum_i delta_i^2 / (delta_i^2 + `sigma`), delta in box
    widths. The gradient is divided by its linf norm; after each step changes below tau are set to zero, and
    tau, from `threshold`, rises by `threshold_rate` times the step's length where the point is misclassified
    and falls by as much where it is not. The length falls from `rate` to a tenth of it on a cosine. The
    step is Adam's, not the plain one of algorithm 1, which stalls between corners of the box: after 300
    plain steps more than half of the samples of an adversarially trained network are still standing.
    `steps` is 300, not 1000: few entries are won by the other 700. `halvings` forward passes and one gradient
    take the least useful entries back at the end (`nearest.closer`), which the paper does not. A sample
    leaves when one entry is enough, or once it is within an eps.
    Source: Cina et al. 2025, 2402.01879, algorithm 1.
    """

    paper = "Cina et al. 2025, 2402.01879"
    norms = ("l0",)
    minimal = True
    cost = Cost.MEDIUM

    steps: int = 300
    rate: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    threshold_rate: float = 0.01
    halvings: int = 6

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.sigma <= 0 or not 0 <= self.threshold < 1 or self.threshold_rate < 0:
            raise UserError(
                "sigma-zero needs rate and sigma > 0, 0 <= threshold < 1 and threshold_rate >= 0, "
                f"not {self.rate:g}, {self.sigma:g}, {self.threshold:g} and {self.threshold_rate:g}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, live = Best.none(batch.x), torch.arange(len(batch), device=batch.x.device)
        goal = 1.0 if threat.eps is None else threat.eps
        z, width, adam = batch.x, threat.box.width, Adam.on(batch.x, self.rate)
        tau = torch.full((len(batch),), self.threshold, device=z.device, dtype=z.dtype)
        for step in range(self.steps):
            x = batch.x[live]
            logits, value, slope = model.gradient(z, live, against(margin_loss, batch.y[live]))
            wrong = value > rounding(logits)
            best.offer(live, z, threat.distance(x, z), wrong)
            if step:
                change = self.threshold_rate * adam.rate
                tau = (tau + torch.where(wrong, change, -change)).clamp(min=0)
            going = best.distance[live] > goal
            live, x, z, slope, tau, wrong = (t[going] for t in (live, x, z, slope, tau, wrong))
            if not len(live):
                break
            adam.keep(going)
            adam.rate = cosine(self.rate, self.rate / 10, step, self.steps)
            delta = (z - x) / width
            fall = smooth_count_slope(delta, self.sigma) / delta[0].numel()
            fall = fall - width * slope * per_sample(~wrong, x)
            unit = fall / per_sample(vector_norm(fall, "linf").clamp(min=1e-30), x)
            moved = threat.box.clamp(x + width * (delta + adam.step(unit)))
            z = torch.where((moved - x).abs() < width * per_sample(tau, x), x, moved)
        rows = torch.arange(len(batch), device=batch.x.device)
        closer(model, batch, rows[best.distance > goal], threat, best, self.halvings)
        return threat.project(batch.x, best.point)
