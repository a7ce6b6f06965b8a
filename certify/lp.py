"""The convex outer polytope solved exactly by linear programming, and re-proved without the solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.backward import adaptive_slope, margins, parallel_slope, relax
from certify.base import Certifier, register_certifier
from certify.convex_program import ConvexProgram
from certify.folded import Folded, Targets, folded_network
from certify.folding import Undecided, undecided_counts, undecided_neurons
from certify.graph import Graph
from certify.ibp import interval_margins, margin_rows
from certify.lowering import without_maxima
from certify.prepare import prepare
from certify.relaxation import Relaxation
from certify.warm_program import Multipliers, WarmProgram
from certify.witness import recheck
from models.base import Batch, Classifier
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

# The multipliers where one target is least; slopes that the program leaves open; a limit in seconds.
Solve = Callable[[int, Tensor, float], list[Multipliers]]
SOLVERS: dict[str, Callable[[Folded, Targets], Solve]] = {
    "highs": lambda folded, targets: WarmProgram(folded, targets).minimum,
    "cvxpy": lambda folded, targets: ConvexProgram(folded, targets).solve,
}


def known_margins(relaxation: Relaxation, y: Tensor) -> Tensor:
    """The best of the interval, polytope and crown bounds (n, classes) that a relaxation starts from."""
    known = torch.maximum(margins(relaxation, y), margins(relaxation.with_alpha({}), y))
    return torch.maximum(known, interval_margins(relaxation.graph, relaxation.x, y, relaxation.threat))


def triangles(
    graph: Graph, x: Tensor, threat: ThreatModel, y: Tensor, neurons: int
) -> tuple[Relaxation, Tensor]:
    """A relaxation made of triangles alone, max pooling rewritten as ReLUs, and the margins known from it.

    The margins are never below those of the network as it stands. Max pooling stays where every sample has
    more than `neurons` undecided neurons as it is, which nobody makes a program of.
    """
    relaxation = relax(graph, x, threat, parallel_slope, adaptive_slope)
    known, lowered = known_margins(relaxation, y), without_maxima(graph, x)
    if lowered is graph or bool((undecided_counts(relaxation) > neurons).all()):
        return relaxation, known
    relaxation = relax(lowered, x, threat, parallel_slope, adaptive_slope)
    return relaxation, torch.maximum(known, known_margins(relaxation, y))


def solved_margins(
    relaxation: Relaxation, y: Tensor, known: Tensor, classes: Tensor, solver: str, seconds: float
) -> Tensor:
    """Lower bounds (1, classes) of one sample's margins by the linear program, never below `known`.

    Only the columns in `classes` (k,) are solved; one that the solver fails on keeps what is known. Each
    program's multipliers become slopes, and the bound is what these prove by themselves.
    """
    undecided = [group for group in undecided_neurons(relaxation) if len(group.places)]
    if not undecided or not len(classes):
        return known
    rows = margin_rows(y, known.shape[1], known.dtype)
    single = [rows[0, target : target + 1] for target in classes.tolist()]
    folded, targets = folded_network(relaxation, single, [row.new_zeros(1) for row in single])
    solve = SOLVERS[solver](folded, targets)
    start = torch.cat([relaxation.alpha[group.node].flatten()[group.places] for group in undecided])
    found = [
        (target, multipliers)
        for group, target in enumerate(classes.tolist())
        for multipliers in solve(group, start, seconds)
    ]
    if not found:
        return known
    solved = torch.tensor([target for target, _ in found])
    none = {i: torch.zeros_like(part) for i, part in relaxation.alpha.items()}
    alpha = over_nodes(relaxation.alpha, undecided, torch.stack([part.alpha for _, part in found]))
    weights = [torch.zeros_like(start) if part.overlap is None else part.overlap for _, part in found]
    overlap = over_nodes(none, undecided, torch.stack(weights))
    proved = recheck(relaxation, rows[:, solved], alpha, overlap)
    return known.scatter_reduce(1, solved[None], proved, "amax")


def over_nodes(like: Mapping[int, Tensor], undecided: list[Undecided], values: Tensor) -> dict[int, Tensor]:
    """`like`, node by node (1, *shape), with the undecided neurons' entries replaced by values (k, m).

    The result is (1, k, *shape): for k rows of one sample.
    """
    moved, start = {}, 0
    places = {group.node: group.places for group in undecided}
    for node, part in like.items():
        flat = part.flatten().repeat(len(values), 1)
        if node in places:
            stop = start + len(places[node])
            flat[:, places[node]] = values[:, start:stop]
            start = stop
        moved[node] = flat.reshape(1, len(values), *part.shape[1:])
    return moved


@register_certifier("lp")
@dataclass(frozen=True, kw_only=True)
class LinearProgram(Certifier):
    """The exact optimum of the triangle relaxation, per sample and class; linf only.

    Intermediate bounds are the intersection of interval, polytope and crown bounds, so that the
    optimum is never below any of the three. Max pooling is rewritten as ReLUs (certify.lowering) first.
    `only_open` solves only the classes that all three leave open; the others keep their bound. Where more
    than `neurons` neurons are undecided, or after `seconds` on one class, the best of interval, polytope
    and crown bounds stands. solver "highs"
    keeps one model a sample, warm from class to class; "cvxpy" writes a fresh problem for each.
    Source: Wong & Kolter 2018, 1711.00851, equation 4; Salman et al. 2019.
    """

    paper = "Wong & Kolter 2018, 1711.00851"
    norms = ("linf",)
    cost = Cost.EXTREME
    searches = True

    only_open: bool = True
    neurons: int = 500
    seconds: float = 60.0
    solver: str = "highs"

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise UserError(f"lp has no solver '{self.solver}': choose {' or '.join(SOLVERS)}")

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            relaxation, known = triangles(graph, x, threat, batch.y, self.neurons)
            counts, pieces = undecided_counts(relaxation).tolist(), []
            for i in range(len(x)):
                one = slice(i, i + 1)
                if counts[i] > self.neurons:
                    pieces.append(known[one])
                    continue
                wanted = (known[i] <= 0) if self.only_open else torch.ones_like(known[i], dtype=torch.bool)
                wanted[batch.y[i]] = False
                sample, classes = relaxation.select(one), wanted.nonzero()[:, 0]
                pieces.append(
                    solved_margins(sample, batch.y[one], known[one], classes, self.solver, self.seconds)
                )
        return torch.cat(pieces) if pieces else known
