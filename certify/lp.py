"""The convex outer polytope solved exactly by linear programming, and re-proved without the solver."""

from __future__ import annotations

from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from certify.backward import Relaxation, adaptive_slope, margins, parallel_slope, relax
from certify.base import Certifier, register_certifier
from certify.folding import Affines, Undecided, fold, fold_inputs, undecided_neurons
from certify.ibp import interval_margins, margin_rows
from certify.prepare import prepare
from certify.witness import recheck, slopes_from_multipliers
from models.base import Batch, Classifier
from models.cost import Cost
from models.randomness import Randomness
from models.threat import ThreatModel

Multipliers = tuple[np.ndarray, np.ndarray]


class Program:
    """min c . (x, a) over the triangle relaxation of one sample's network, for any cost c.

    Variables: the input x in its box and the output a of each undecided neuron. Constraints, with
    z affine in x and in earlier a: a >= leak z, a >= z, and a below the chord from (l, leak l) to
    (u, u). Source: Wong & Kolter 2018, 1711.00851, equation 4.
    """

    def __init__(self, relaxation: Relaxation, undecided: list[Undecided]) -> None:
        self.undecided = undecided
        lower, upper = (bound.flatten().numpy() for bound in relaxation.threat.bounds(relaxation.x))
        inputs = cp.Variable(len(lower), bounds=[lower, upper])
        neurons = cp.Variable(sum(len(group.places) for group in undecided))
        self.variables = cp.hstack([inputs, neurons])
        values = self._matrix([fold_inputs(relaxation, group, undecided) for group in undecided])
        matrix, constant = values
        z = matrix @ self.variables + constant
        low = np.concatenate([group.lower.numpy() for group in undecided])
        high = np.concatenate([group.upper.numpy() for group in undecided])
        leak = np.concatenate([np.full(len(group.places), group.leak) for group in undecided])
        chord = (high - leak * low) / (high - low)
        self.above_zero = neurons >= cp.multiply(leak, z)
        self.above_line = neurons >= z
        below_chord = neurons <= cp.multiply(chord, z) + (1 - chord) * high
        self.cost = cp.Parameter(len(lower) + len(low))
        constraints = [self.above_zero, self.above_line, below_chord]
        self.problem = cp.Problem(cp.Minimize(self.cost @ self.variables), constraints)

    def _matrix(self, parts: list[Affines]) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients over (x, a), and constants, of stacked affine functions."""
        rows = [torch.cat([p.inputs, *(p.neurons[g.node] for g in self.undecided)], 1) for p in parts]
        return torch.cat(rows).numpy(), torch.cat([p.constant for p in parts]).numpy()

    def multipliers(self, value: Affines, seconds: float) -> Multipliers | None:
        """The multipliers of a >= leak z and a >= z where `value` (one row) is least; None on any failure."""
        self.cost.value = self._matrix([value])[0][0]
        try:
            self.problem.solve(solver=cp.HIGHS, time_limit=seconds)
        except (cp.SolverError, ValueError, ArithmeticError):
            return None
        if self.above_zero.dual_value is None or self.above_line.dual_value is None:
            return None
        return np.asarray(self.above_zero.dual_value), np.asarray(self.above_line.dual_value)


def solved_margins(relaxation: Relaxation, y: Tensor, known: Tensor, seconds: float, skip: Tensor) -> Tensor:
    """Lower bounds (1, classes) of one sample's margins by the linear program, never below `known`.

    Classes in `skip` (classes,) keep what is known, as do those that the solver fails on. Each
    program's multipliers become lower slopes, and the bound is what these prove by themselves.
    """
    undecided = [group for group in undecided_neurons(relaxation) if len(group.places)]
    if not undecided or bool(skip.all()):
        return known
    rows = margin_rows(y, known.shape[1], known.dtype)
    folded = fold(relaxation, len(relaxation.graph.nodes) - 1, rows[0], undecided)
    program = Program(relaxation, undecided)
    better = known.clone()
    for target in (~skip).nonzero()[:, 0].tolist():
        part = {i: value[target : target + 1] for i, value in folded.neurons.items()}
        one = slice(target, target + 1)
        found = program.multipliers(Affines(folded.inputs[one], part, folded.constant[one]), seconds)
        if found is not None:
            proved = recheck(relaxation, rows[:, one], _slopes(relaxation, undecided, found))
            better[:, one] = torch.maximum(better[:, one], proved)
    return better


def _slopes(relaxation: Relaxation, undecided: list[Undecided], found: Multipliers) -> dict[int, Tensor]:
    """The solver's multipliers as lower slopes (1, *shape) of each relaxed node."""
    alpha = dict(relaxation.alpha)
    start = 0
    for group in undecided:
        stop = start + len(group.places)
        zero, line = (torch.from_numpy(np.array(part[start:stop], dtype=np.float64)) for part in found)
        flat = alpha[group.node].flatten().clone()
        flat[group.places] = slopes_from_multipliers(zero, line, flat[group.places])
        alpha[group.node] = flat.reshape(alpha[group.node].shape)
        start = stop
    return alpha


@register_certifier("lp")
@dataclass(frozen=True, kw_only=True)
class LinearProgram(Certifier):
    """The exact optimum of the triangle relaxation, per sample and class; linf only.

    Intermediate bounds are the intersection of interval, polytope and crown bounds, so that the
    optimum is never below any of the three. `only_open` solves only the classes that all three
    leave open; the others keep their bound. Where more than `neurons` neurons are undecided, or
    after `seconds` on one class, the best of interval, polytope and crown bounds stands.
    Source: Wong & Kolter 2018, 1711.00851, equation 4; Salman et al. 2019.
    """

    paper = "Wong & Kolter 2018, 1711.00851"
    norms = ("linf",)
    cost = Cost.EXTREME

    only_open: bool = True
    neurons: int = 300
    seconds: float = 60.0

    def bound(self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Tensor:
        graph, x = prepare(model, batch.x)
        with torch.no_grad():
            relaxation = relax(graph, x, threat, parallel_slope, adaptive_slope)
            known = torch.maximum(margins(relaxation, batch.y), margins(relaxation.with_alpha({}), batch.y))
            known = torch.maximum(known, interval_margins(graph, x, batch.y, threat))
            pieces = []
            for i in range(len(x)):
                one = slice(i, i + 1)
                skip = (known[i] > 0) if self.only_open else torch.zeros_like(known[i], dtype=torch.bool)
                skip[batch.y[i]] = True
                sample = relaxation.select(one)
                if sum(len(group.places) for group in undecided_neurons(sample)) > self.neurons:
                    skip = torch.ones_like(skip)
                pieces.append(solved_margins(sample, batch.y[one], known[one], self.seconds, skip))
        return torch.cat(pieces) if pieces else known
