"""The exact answer for networks of the ReLU family: certified, or broken by a counterexample."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certify.base import Certifier, Decision, check_seconds, needed_margin, register_certifier
from certify.case import Case
from certify.graph import Graph, trace
from certify.ibp import interval_margins
from certify.prepare import check_agreement, check_finite, prepare
from certify.property import Accept, Property, robustness
from certify.settle import Verdict, settle_case
from models.base import Batch, Classifier, frozen, margin
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.region import Region
from models.threat import ThreatModel

# A proof in double precision of the network in real arithmetic: relative to the size of its outputs.
SLACK = 1e-9


def settle(network: nn.Module, prop: Property, *, seconds: float, seed: int = 0) -> Verdict:
    """Decides within `seconds` whether any input of `prop` reaches an unsafe output of `network`.

    network is any traceable nn.Module from (1, ...) to (1, outputs); the witness of a broken property is
    (1, ...) float64, inside the bounds, and unsafe for the network in double precision.
    Raises UserError for a time that is not positive, weights that are not finite, outputs of another
    number or inputs of another shape than the property speaks of, outputs that overflow or differ from the
    traced operations', or, naming it, an operation that is not understood.
    """
    started = time.monotonic()
    check_seconds(seconds)
    region = Region(low=prop.lower.double()[None], high=prop.upper.double()[None])
    model = Classifier(network, num_classes=prop.clauses[0].rows.shape[1], box=region.box)
    with frozen(model):
        double = copy.deepcopy(network).double().eval().requires_grad_(False)
        graph, x = _traced(double, model, region.centre)
        with torch.no_grad():
            size = float(graph.values(x)[-1].abs().amax())
        case = Case(
            graph, x, region, prop, SLACK * max(1.0, size),
            lambda point: point if bool(prop.excess(double(point)) <= 0) else None, started + seconds,
            torch.full((len(prop.clauses),), -torch.inf, dtype=torch.float64),
        )  # fmt: skip
        step = settle_case(case, Randomness(seed))
    return _verdict(case, step, started)


def _traced(double: nn.Module, model: Classifier, x: Tensor) -> tuple[Graph, Tensor]:
    check_finite(double, "the network")
    graph = trace(double, like=x)
    try:
        outputs = graph.num_classes(x)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the network takes no input of the property's shape {tuple(x.shape[1:])}: {reason}"
        ) from error
    if outputs != model.num_classes:
        raise UserError(f"the network has {outputs} outputs but the property speaks of {model.num_classes}")
    with torch.no_grad():
        ours, theirs = graph.values(x)[-1], double(x)
    if not bool(torch.isfinite(ours).all()):
        raise UserError("the network's outputs overflow at the centre of the input bounds: scale its weights")
    check_agreement(ours, theirs, "the network")
    return graph, x


def _verdict(case: Case, step: str, started: float) -> Verdict:
    status = "broken" if case.witness is not None else "open" if len(case.open) else "certified"
    return Verdict(status, case.witness, case.lower, step, time.monotonic() - started)


@register_certifier("exact")
@dataclass(frozen=True, kw_only=True)
class Exact(Certifier):
    """Settles each sample: certified, broken with a counterexample, or open after `seconds`.

    Cheapest step first, each for the samples that are still open: interval bounds, a brief descent, crown
    with polytope, a longer descent, then on the network with its stable neurons folded away, and what maps
    single inputs folded into the input set: optimised slopes, tightened bounds, branch and bound on ReLU
    phases with optimised multipliers (beta-CROWN), in linf upper lines of the neurons that read the inputs
    alone (their envelopes; along curves, where first neurons read one input each), exact linear programs
    where these stall and a descent in every open branch, the same clause by clause with every neuron bounded
    again in every branch under the assumption that the clause fails (INVPROP), and a mixed-integer program
    that looks for witnesses. Proofs are dual bounds in double precision, so that a margin may be smaller
    than what other certificates ask for (`tolerance`); no solver's word is taken. Networks with other
    activations, and those too large to fold, take the same steps on the ranges of their activations' inputs:
    tighter ends, branches that cut a range in two (GenBaB), and every range bounded again in every branch.
    Source: Wang et al. 2021, 2103.06624; Kotha et al. 2023, 2302.01404; Tjeng et al. 2019, 1711.07356; Shi et
    al. 2024, 2405.21063; Tjandraatmadja et al. 2020, 2006.14076.
    """

    paper = "Wang et al. 2021, 2103.06624"
    cost = Cost.EXTREME
    searches = True
    tolerance = 1e-7

    seconds: float = 30.0

    def __post_init__(self) -> None:
        check_seconds(self.seconds)

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        return self.decide(model, batch, threat, randomness).lower

    def decide(
        self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
    ) -> Decision:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            lower = interval_margins(graph, x, batch.y, threat)
            logits = graph.values(x)[-1]
        lower = lower.scatter(1, batch.y[:, None], torch.inf)
        tolerance = needed_margin(logits, self.tolerance)
        found = margin(logits, batch.y) < 0
        witness, steps = batch.x.clone(), []
        for i in range(len(x)):
            if found[i]:
                steps.append("clean")
            elif lower[i].amin() > tolerance[i]:
                steps.append("ibp")
            else:
                sample = batch[slice(i, i + 1)]
                accept = accepted(model, sample, threat)
                stream, slack = randomness.child(int(sample.index[0])), float(tolerance[i])
                step, case = self.one(
                    graph, x[i : i + 1], int(sample.y[0]), lower[i], threat, slack, accept, stream
                )
                steps.append(step)
                if case.witness is not None:
                    found[i], witness[i] = True, case.witness[0].to(witness)
        return Decision(lower, witness, found, tuple(steps))

    def one(
        self, graph: Graph, x: Tensor, label: int, lower: Tensor, threat: ThreatModel, tolerance: float,
        accept: Accept, randomness: Randomness,
    ) -> tuple[str, Case]:  # fmt: skip
        """Settles one sample; `lower` (classes,) is improved in place."""
        low, high = threat.bounds(x)
        prop = robustness(low[0], high[0], label, len(lower))
        others = torch.arange(len(lower)) != label
        case = Case(
            graph, x, threat, prop, tolerance, accept, time.monotonic() + self.seconds, lower[others].clone()
        )
        step = settle_case(case, randomness)
        lower[others] = case.lower
        return (step if case.done else "open"), case


def accepted(model: Classifier, sample: Batch, threat: ThreatModel) -> Accept:
    """Rounds a point to the model's precision, inside the threat set; keeps it where it fools the model."""

    def accept(point: Tensor) -> Tensor | None:
        moved = threat.project(sample.x, point.to(sample.x))
        with torch.no_grad():
            errs = margin(model.logits(moved), sample.y) < 0
        return moved if bool((errs & threat.contains(sample.x, moved)).all()) else None

    return accept
