"""DeepFool: the shortest way over the nearest linearised decision boundary, step after step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import clearly_wrong, rounding
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample, vector_norm

GROWTH = 6.0
"""By what factor a slope may change from one step to the next."""
GROUPS = (1, 2, 4)
"""Samples with up to so many possible rivals are linearised together."""


class Rivals:
    """Leaves out the classes whose linearised boundary cannot be the nearest, so that few are linearised.

    A class's boundary lies at gap / slope, the slope in the dual norm. `slope` (n, classes) is the one last
    measured, 0 for none or one that vanished; `factor` says how much it may have changed since, GROWTH with
    every step. A class is out while another's boundary is nearer even so, and comes back as either grows.
    With `tangent` slopes are those along the entries that the box leaves free.
    """

    def __init__(self, x: Tensor, classes: int, tangent: bool) -> None:
        self.tangent = tangent
        self.slope = torch.zeros(len(x), classes, device=x.device, dtype=x.dtype)
        self.factor = torch.ones_like(self.slope)

    def possible(self, live: Tensor, others: Tensor, gaps: Tensor) -> Tensor:
        """Whether the boundary of each class of `others` (k, m) can be the nearest of a sample `live` (k,).

        gaps (k, m) > 0: how far each of these logits lies below the label's.
        """
        self.factor[live] *= GROWTH
        slope, factor = (t[live].gather(1, others) for t in (self.slope, self.factor))
        known = slope > 0
        length = gaps / slope
        farthest = torch.where(known, length * factor, torch.inf).amin(1, keepdim=True)
        return ~known | (length / factor <= farthest)

    def measured(self, live: Tensor, others: Tensor, slope: Tensor) -> None:
        """Takes in the slopes (k, m) of the classes `others` (k, m) of the samples `live` (k,)."""
        self.slope[live[:, None], others] = slope
        self.factor[live[:, None], others] = 1.0


def boundary_step(
    model: GradientAccess,
    z: Tensor,
    y: Tensor,
    rows: Tensor | None,
    others: Tensor,
    threat: ThreatModel,
    *,
    tangent: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest step from z (k, ...) to a linearised boundary between y (k,) and one of `others` (k, m).

    Solves min_r ||r|| s.t. f_j + w_j . r = 0, where f_j is the logit of j less that of y and w_j its
    gradient at z, for each class j of `others`, and keeps the shortest:
    |f_j| / ||w_j||_q along the steepest direction, q the dual norm (1511.04599, eq. 8 to 11).
    With `tangent`, entries of w that point out of the box count as zero.
    Returns r, zero where no class has a usable gradient, whether one has (k,), and the ||w_j||_q (k, m).
    """
    k, m = others.shape
    directions = z.new_zeros(m, k, model.num_classes)
    directions.scatter_(2, others.T[:, :, None], 1.0)
    directions.scatter_(2, y.expand(m, k)[:, :, None], -1.0)
    logits, slopes = model.jacobian(z, rows, directions)
    gaps = logits.gather(1, y[:, None]) - logits.gather(1, others)
    if tangent:
        slopes = threat.box.tangent(z, slopes)
    steepness = vector_norm(slopes.flatten(0, 1), threat.dual_norm).reshape(m, k).T
    # The last bits of a boundary point depend on the batch it is computed in: aim behind them.
    gaps = gaps.abs() + 2 * rounding(logits)[:, None]
    lengths = torch.where(steepness > 0, gaps / steepness, torch.inf)
    length, nearest = lengths.min(1)
    usable = torch.isfinite(length)
    slope = slopes[nearest, torch.arange(k, device=z.device)]
    return per_sample(length.where(usable, 0.0), z) * threat.steepest(slope), usable, steepness


def nearest_step(
    model: GradientAccess,
    z: Tensor,
    y: Tensor,
    rows: Tensor | None,
    live: Tensor,
    logits: Tensor,
    threat: ThreatModel,
    rivals: Rivals,
    classes: int,
) -> tuple[Tensor, Tensor]:
    """`boundary_step` of the samples `live` (k,) of z (n, ...), where `logits` (k, ...) are known.

    Among those of the `classes` - 1 largest other logits whose boundary can be the nearest: `rivals` says
    which, and learns their slopes. Returns r (k, ...) and whether a class has a usable gradient (k,).
    """
    own = logits.gather(1, y[live][:, None])
    top = logits.scatter(1, y[live][:, None], -torch.inf).topk(min(classes, model.num_classes) - 1, dim=1)
    gaps = (own - top.values).abs() + 2 * rounding(logits)[:, None]
    possible = rivals.possible(live, top.indices, gaps)
    others = top.indices.gather(1, possible.long().argsort(dim=1, descending=True, stable=True))
    count, least = possible.sum(1), 0
    move, usable = torch.zeros_like(z[live]), torch.zeros_like(live, dtype=torch.bool)
    for size in (*(size for size in GROUPS if size < others.shape[1]), others.shape[1]):
        part = ((count > least) & (count <= size)).nonzero()[:, 0]
        least = size
        if not len(part):
            continue
        mine, chosen = live[part], others[part, :size]
        asked = None if rows is None else rows[mine]
        move[part], usable[part], slope = boundary_step(
            model, z[mine], y[mine], asked, chosen, threat, tangent=rivals.tangent
        )
        rivals.measured(mine, chosen, slope)
    return move, usable


def walk(
    model: GradientAccess,
    x: Tensor,
    y: Tensor,
    rows: Tensor | None,
    threat: ThreatModel,
    *,
    steps: int,
    overshoot: float,
    classes: int,
    tangent: bool,
) -> tuple[Tensor, Tensor]:
    """DeepFool from x (n, ...) away from the labels y (n,), within the box alone.

    Returns the point x + (1 + overshoot) r of every sample that the model then classifies
    otherwise than y, the last point for the others, and which is which (n,). The total r is
    kept without the overshoot, so the factor never compounds. `tangent` measures boundaries along the
    entries that the box leaves free: a fifth of the steps, to a point some 5 % farther.
    """
    box, point, found = threat.box, x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    live = torch.arange(len(x), device=x.device)
    total, rivals = torch.zeros_like(x), Rivals(x, model.num_classes, tangent)
    for step in range(steps + 1):
        mine = None if rows is None else rows[live]
        logits = model.logits(point[live], mine)
        wrong = clearly_wrong(logits, y[live])
        found[live] = wrong
        live, total, logits = live[~wrong], total[~wrong], logits[~wrong]
        if step == steps or not len(live):
            break
        # Where bounds block nearly all of the step, clipped steps approach the boundary too slowly.
        blocked = tangent or step >= 0.8 * steps
        if blocked != rivals.tangent:
            rivals = Rivals(x, model.num_classes, blocked)
        move, usable = nearest_step(model, point, y, rows, live, logits, threat, rivals, classes)
        live, start = live[usable], x[live[usable]]
        total = box.clamp(start + total[usable] + move[usable]) - start
        point[live] = box.clamp(start + (1 + overshoot) * total)
    return point, found


def shorten(
    model: GradientAccess, x: Tensor, y: Tensor, rows: Tensor, point: Tensor, halvings: int
) -> Tensor:
    """Bisects the segment from x to the misclassified `point` (n, ...) and returns a misclassified end."""
    low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    for _ in range(halvings):
        middle = (low + high) / 2
        wrong = clearly_wrong(model.logits(x + per_sample(middle, x) * (point - x), rows), y)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    return torch.where(per_sample(high < 1, x), x + per_sample(high, x) * (point - x), point)


@register_attack("deepfool")
@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Estimates the smallest perturbation; on an affine classifier it finds (1 + overshoot) times it at once.

    Each step goes to the nearest boundary of the model linearised at the current point; in linf
    and l1 lengths are measured in the dual norm. `classes` candidates, the label among them, are
    linearised at the first step, later only those whose boundary can be the nearest: fewer passes for
    the same points, as long as no slope changes sixfold in one step. The paper has no box: here every
    point is clipped to it, and the walk goes on where the clip undid the success. With `tangent` a step
    leaves out the entries that a bound blocks, and a walk needs a fifth of the passes for points some
    5 % farther; l1, whose step has one entry alone, always does so, the other norms in their last fifth
    of `steps`.
    `halvings` > 0 bisects the way back towards x, which the paper does not: leave it 0 to compare
    with published numbers. With an eps, a point farther than eps is handed over projected on the
    ball; a failed search hands over the clean input.
    Source: Moosavi-Dezfooli, Fawzi, Frossard 2016, 1511.04599, algorithm 2 and section 3.3; evaluated at the
    overshot point, as in the authors' code.
    """

    paper = "Moosavi-Dezfooli, Fawzi, Frossard 2016, 1511.04599"
    norms = ("linf", "l2", "l1")
    minimal = True

    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10
    halvings: int = 0
    tangent: bool = False

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise UserError(f"deepfool needs classes >= 2 (the label and a rival), not {self.classes}")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        x, rows = batch.x, torch.arange(len(batch), device=batch.x.device)
        point, found = walk(
            model,
            x,
            batch.y,
            rows,
            threat,
            steps=self.steps,
            overshoot=self.overshoot,
            classes=self.classes,
            tangent=self.tangent or threat.norm == "l1",
        )
        best = x.clone()
        best[found] = shorten(model, x[found], batch.y[found], rows[found], point[found], self.halvings)
        return threat.project(x, best)
