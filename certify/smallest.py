"""The smallest adversarial perturbation of a sample, between a proof and a counterexample."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.base import Certificate
from certify.crown import Crown
from certify.exact import Exact
from models.base import Batch, Classifier, check_inputs, frozen, margin
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

# Where the cheap proofs start, halving from the upper end, and how often the radius found is refined.
HALVINGS = 20
REFINEMENTS = 4

# Rounds of questions: the share of a sample's time that one may take; the width (a share of the upper end)
# below which the round leaves a gap to the next; and where it cuts a gap, so that a radius at which
# the network ties up to rounding, which nobody can settle, is not asked about again.
ROUNDS = ((1 / 16, 0.03, 0.5), (1 / 4, 0.01, 0.4), (1.0, 0.0, 0.6))


@dataclass(frozen=True)
class Smallest:
    """The least distance at which each of n samples is misclassified lies in [lower, upper].

    lower (n,) float64: nothing within that distance, in the box, is misclassified, proved for the network in
    real arithmetic. upper (n,) float64 is the measured distance of witness (n, ...), a misclassified input
    in the box; infinite, with the clean input as witness, where none is known. closed (n,) says that the
    interval is as narrow as was asked for; a misclassified clean input has [0, 0]. seconds (n,).
    """

    lower: Tensor
    upper: Tensor
    witness: Tensor
    closed: Tensor
    seconds: Tensor


@dataclass
class _Bracket:
    """What is known of one sample's least distance, and which radius to ask about next.

    `hard` are radii that the time for one question did not settle: what lies beyond them on either
    side may still be.
    """

    upper: float
    reach: float
    tolerance: float
    lower: float = 0.0
    near: bool = True
    hard: list[float] = field(default_factory=list)

    @property
    def goal(self) -> float:
        return self.tolerance * self.upper if math.isfinite(self.upper) else 0.0

    @property
    def closed(self) -> bool:
        return self.lower >= self.reach or self.upper - self.lower <= self.goal

    def question(self, width: float, cut: float) -> float | None:
        """A radius that cuts a gap in [lower, upper) wider than width * upper; None where there is none."""
        if math.isinf(self.upper):
            radius = min(2 * self.lower, self.reach) if self.lower else min(self.reach, 1.0)
            return radius if radius not in self.hard else None
        if self.near:
            # A good attack is often optimal: one proof just below it then closes the interval.
            self.near = False
            return self.upper - 0.9 * self.goal
        ends = [self.lower, *sorted(self.hard), self.upper]
        below, above = ends[1] - ends[0], ends[-1] - ends[-2]
        if max(below, above) <= max(self.goal, width * self.upper):
            return None
        return self.lower + cut * below if below >= above else self.upper - (1 - cut) * above

    def proved(self, radius: float) -> None:
        self.lower = max(self.lower, radius)
        self.hard = [other for other in self.hard if other > radius]

    def broken(self, distance: float) -> None:
        self.upper = min(self.upper, distance)
        self.hard = [other for other in self.hard if other < distance]


def smallest_perturbations(
    model: Classifier,
    batch: Batch,
    threat: ThreatModel,
    randomness: Randomness,
    *,
    start: Tensor | None = None,
    seconds: float = 60.0,
    tolerance: float = 1e-3,
) -> Smallest:
    """Brackets each sample's smallest perturbation within threat.box, whatever threat.eps is; linf, l2, l1.

    From above by `start` (n, ...), what attacks found (those that fool nobody are passed over), and by
    counterexamples of the exact certificate; from below by crown at a radius found by bisection, then by the
    exact certificate, at radii that cut the interval until it is at most `tolerance` times its upper
    end or the sample's `seconds` are up. What is proved at one radius holds below it. A sample's interval
    does not depend on the others. Raises UserError for a norm without proofs, times, tolerances or starts
    that make no sense, and what `Certifier.run` raises.
    """
    _check(batch, threat, start, seconds, tolerance)
    check_inputs(batch, model)
    started = batch.x if start is None else start.to(batch.x)
    with frozen(model):
        found = [
            _one(model, batch[slice(i, i + 1)], threat, randomness, started[i : i + 1], seconds, tolerance)
            for i in range(len(batch))
        ]
    columns = (torch.tensor([row[j] for row in found], dtype=torch.float64) for j in (0, 1, 3))
    lower, upper, spent = columns
    witness = torch.cat([row[2] for row in found]) if found else batch.x
    closed = torch.tensor([row[4] for row in found], dtype=torch.bool)
    return Smallest(lower, upper, witness, closed, spent)


def _check(batch: Batch, threat: ThreatModel, start: Tensor | None, seconds: float, tolerance: float) -> None:
    if threat.norm not in Exact.norms:
        known = ", ".join(Exact.norms)
        raise UserError(f"no smallest perturbation is proved in '{threat.norm}': choose {known}")
    if not 0 < seconds < math.inf:
        raise UserError(f"a time limit of {seconds:g} s a sample: give a positive, finite one")
    if not 0 < tolerance < 1:
        raise UserError(f"a tolerance of {tolerance:g}: give a share of the distance between 0 and 1")
    if start is not None and start.shape != batch.x.shape:
        raise UserError(
            f"starts of shape {tuple(start.shape)} for inputs of shape {tuple(batch.x.shape)}: "
            "give one adversarial input a sample"
        )


def _one(
    model: Classifier, sample: Batch, threat: ThreatModel, randomness: Randomness, start: Tensor,
    seconds: float, tolerance: float,
) -> tuple[float, float, Tensor, float, bool]:  # fmt: skip
    """lower, upper, witness (1, ...), seconds and whether it is closed, of one sample."""
    began = time.monotonic()
    if _errs(model, sample.x, sample):
        return 0.0, 0.0, sample.x, time.monotonic() - began, True
    witness, upper = sample.x, math.inf
    if bool(threat.box.contains(start)) and _errs(model, start, sample):
        witness, upper = start, float(threat.distance(sample.x, start))
    bracket = _Bracket(upper, _reach(sample.x, threat), tolerance)
    _raise_cheaply(bracket, model, sample, threat, randomness, began + seconds / 3)
    for share, width, cut in ROUNDS:
        bracket.hard.clear()
        while not bracket.closed and (left := began + seconds - time.monotonic()) > 0:
            radius = bracket.question(width, cut)
            if radius is None or not radius > bracket.lower:
                break
            limit = min(left, share * seconds)
            answer = Exact(seconds=limit).run(model, sample, threat.at(radius), randomness)
            if bool(answer.certified):
                bracket.proved(radius)
            elif bool(answer.broken) and answer.witness is not None:
                witness = answer.witness
                bracket.broken(float(threat.distance(sample.x, witness)))
            else:
                bracket.hard.append(radius)
    return bracket.lower, bracket.upper, witness, time.monotonic() - began, bracket.closed


def _errs(model: Classifier, x: Tensor, sample: Batch) -> bool:
    with torch.no_grad():
        return bool((margin(model.logits(x), sample.y) < 0).all())


def _reach(x: Tensor, threat: ThreatModel) -> float:
    """The distance of the box's farthest corner: no input is farther away."""
    low, high = threat.box.lower, threat.box.upper
    return float(threat.distance(x, torch.where(x - low > high - x, low, high).to(x)))


def _raise_cheaply(
    bracket: _Bracket, model: Classifier, sample: Batch, threat: ThreatModel, randomness: Randomness,
    end: float,
) -> None:  # fmt: skip
    """Lifts the lower end to the largest radius that crown proves, up to a factor 1 + 2**-REFINEMENTS."""

    def proved(radius: float) -> Certificate:
        return Crown().run(model, sample, threat.at(radius), randomness)

    radius = min(bracket.upper * (1 - bracket.tolerance / 2), bracket.reach)
    for _ in range(HALVINGS):
        if bool(proved(radius).certified):
            bracket.proved(radius)
            break
        radius /= 2
        if time.monotonic() > end:
            return
    step = radius / 2
    for _ in range(REFINEMENTS):
        if not bracket.lower or bracket.closed or time.monotonic() > end:
            return
        if bool(proved(bracket.lower + step).certified):
            bracket.proved(bracket.lower + step)
        step /= 2
