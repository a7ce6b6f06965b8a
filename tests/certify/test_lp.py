"""The linear program: exact on the relaxation, and never believed."""

from types import SimpleNamespace

import cvxpy as cp
import highspy
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor, nn

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.convex_program import ConvexProgram
from certify.crown import Crown
from certify.ibp import IntervalBounds, margin_rows
from certify.lp import SOLVERS, LinearProgram
from certify.lp_fast import FastLinearProgram
from certify.polytope import Polytope
from certify.prepare import prepare
from certify.relaxation import Relaxation
from certify.warm_program import WarmProgram
from certify.witness import overlap_from_multipliers, recheck, slopes_from_multipliers
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, mlp, model, smallest_margins

SOLVED = ["mlp", "leaky", "conv", "residual", "batch-norm", "average-pool", "normalised", "max-pool"]
THREAT = ThreatModel("linf", 0.08)


def run(certifier, judged, data):
    return certifier.run(judged, data, THREAT, Randomness(0)).lower


def textbook_optimum(network: nn.Sequential, relaxation: Relaxation, row: Tensor) -> float:
    """The triangle program of one sample as books write it: every z and a a variable, nothing folded."""
    low, high = (end.flatten().numpy() for end in relaxation.threat.bounds(relaxation.x))
    bounds, equal, right, above = list(zip(low, high, strict=True)), [], [], []
    size, last = len(low), np.arange(len(low))
    steps = [(layer, relaxation.bounds.get(i)) for i, layer in enumerate(network, start=1)]
    total = size + sum(2 * len(layer.bias) for layer in network if isinstance(layer, nn.Linear))

    def line(entries: dict[int, float]) -> np.ndarray:
        filled = np.zeros(total)
        filled[list(entries)] = list(entries.values())
        return filled

    for layer, ends in steps:
        if not isinstance(layer, nn.Linear):
            continue
        weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        z, a = size + np.arange(len(bias)), size + len(bias) + np.arange(len(bias))
        size += 2 * len(bias)
        for j in range(len(bias)):
            equal.append(line({int(z[j]): 1.0, **{int(k): -weight[j, p] for p, k in enumerate(last)}}))
            right.append(bias[j])
            bottom, top = (float(end[0, j]) for end in (ends.lower, ends.upper)) if ends else (0.0, 0.0)
            if bottom >= 0 or top <= 0:
                equal.append(line({int(a[j]): 1.0, int(z[j]): -float(ends is None or bottom >= 0)}))
                right.append(0.0)
            else:
                chord = top / (top - bottom)
                above += [(line({int(a[j]): -1.0, int(z[j]): 1.0}), 0.0), (line({int(a[j]): -1.0}), 0.0)]
                above.append((line({int(a[j]): 1.0, int(z[j]): -chord}), -chord * bottom))
        bounds += [(None, None)] * (2 * len(bias))
        last = a
    cost = np.zeros(total)
    cost[last] = row.numpy()
    rows, limits = (np.array(part) for part in zip(*above, strict=True)) if above else (None, None)
    found = linprog(cost, rows, limits, np.array(equal), np.array(right), bounds)
    assert found.status == 0
    return float(found.fun)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_proved_is_the_textbooks_optimum(seed):
    judged, data = model(mlp(6, 7, 6, 5, 3), seed=seed), batch(2, shape=(6,), seed=seed)
    graph, x = prepare(judged, data.x)
    relaxation = relax(graph, x, THREAT.at(0.3), parallel_slope, adaptive_slope)
    certifier = LinearProgram(only_open=False)
    lower = certifier.run(judged, data, THREAT.at(0.3), Randomness(0)).lower
    for i in range(2):
        for j in {0, 1, 2} - {int(data.y[i])}:
            row = margin_rows(data.y[i : i + 1], 3, x.dtype)[0, j]
            optimum = textbook_optimum(judged.network, relaxation.select(slice(i, i + 1)), row)
            assert float(lower[i, j]) == pytest.approx(optimum, abs=1e-6)


@pytest.mark.parametrize("family", SOLVED)
def test_warm_programs_prove_what_fresh_ones_do(family):
    judged, data = model(family), batch(2)
    warm, fresh = (run(LinearProgram(only_open=False, solver=name), judged, data) for name in SOLVERS)
    known = torch.maximum(run(Polytope(), judged, data), run(Crown(), judged, data))
    other = torch.isfinite(warm)
    assert (warm - fresh)[other].abs().max() < 1e-6
    assert (warm - known)[other].min() >= -1e-9
    least, _ = smallest_margins(judged, data, THREAT)
    assert (least - warm)[other].min() >= -1e-9


def test_neurons_held_at_a_corner_keep_their_share_of_the_bound(monkeypatch):
    judged, data = load(ModelName.parse("conv-small+polytope")), load_data("mnist5k")
    image = data.batch(data.panel(3))[2:]
    threat = ThreatModel("linf", 0.1)
    warm, fresh = (
        LinearProgram(only_open=False, solver=name).run(judged, image, threat, Randomness(0)).lower
        for name in SOLVERS
    )
    other = torch.isfinite(warm)
    assert (warm - fresh)[other].abs().max() < 1e-6
    monkeypatch.setattr("certify.warm_program.overlap_from_multipliers", lambda zero, line, chord: 0 * chord)
    without = LinearProgram(only_open=False).run(judged, image, threat, Randomness(0)).lower
    assert (warm - without)[other].max() > 1e-3
    assert (warm - without)[other].min() >= -1e-9


@pytest.mark.parametrize("family", SOLVED)
def test_any_slopes_and_overlaps_are_valid(family):
    judged, data = model(family), batch(2)
    graph, x = prepare(judged, data.x)
    relaxation = relax(graph, x, THREAT, parallel_slope, adaptive_slope)
    least, _ = smallest_margins(judged, data, THREAT)
    rows = margin_rows(data.y, 3, x.dtype)
    generator = torch.Generator().manual_seed(1)
    for size in (0.0, 0.1, 10.0, torch.inf, torch.nan):
        alpha, overlap = (
            {
                i: scale * torch.rand(2, 3, *part.shape[1:], generator=generator, dtype=x.dtype)
                for i, part in relaxation.alpha.items()
            }
            for scale in (1.0, size)
        )
        assert (least - recheck(relaxation, rows, alpha, overlap)).min() >= -1e-9


def test_only_open_classes_are_solved_by_default():
    judged, data = model("mlp"), batch(4)
    known = torch.maximum(run(Polytope(), judged, data), run(Crown(), judged, data))
    full, default = run(LinearProgram(only_open=False), judged, data), run(LinearProgram(), judged, data)
    open_ = known <= 0
    assert torch.allclose(default[open_], full[open_], atol=1e-9)
    assert (full >= default - 1e-9).all()


LIES = {
    "too large": lambda zero, line, chord: (zero + 1e3, line + 1e6, chord + 1e9),
    "huge": lambda zero, line, chord: (zero + 1e300, line + 1e300, chord + 1e300),
    "negative": lambda zero, line, chord: (-zero - 1, -line - 5, -chord - 3),
    "not a number": lambda zero, line, chord: (zero * np.nan, line * np.nan, chord * np.nan),
    "infinite": lambda zero, line, chord: (zero + np.inf, line, chord + np.inf),
    "zero": lambda zero, line, chord: (zero * 0, line * 0, chord * 0),
    "in another order": lambda zero, line, chord: (np.flip(zero).copy(), chord, np.flip(line).copy()),
}


def lying_cvxpy(lie, monkeypatch):
    solve = cp.Problem.solve

    def lying(self, *args, **kwargs):
        solve(self, *args, **kwargs)
        parts = [np.asarray(constraint.dual_value) for constraint in self.constraints]
        for constraint, value in zip(self.constraints, lie(*parts), strict=True):
            constraint.dual_variables[0].save_value(value)
        self._value = 1e6
        return 1e6

    monkeypatch.setattr(cp.Problem, "solve", lying)


def lying_highs(lie, monkeypatch):
    tell = highspy.Highs.getSolution

    def lying(self):
        truth = tell(self)
        rows, values = np.array(truth.row_dual), np.array(truth.col_value)
        affine, *parts = np.split(rows, 4)
        told = np.concatenate([affine + 7, *lie(*parts[:2], -parts[2])])
        return SimpleNamespace(row_dual=told, col_dual=np.array(truth.col_dual), col_value=values + 1e3)

    monkeypatch.setattr(highspy.Highs, "getSolution", lying)


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize(("solver", "liar"), [("highs", lying_highs), ("cvxpy", lying_cvxpy)])
def test_a_lying_solver_proves_nothing_false(lie, solver, liar, monkeypatch):
    liar(LIES[lie], monkeypatch)
    judged, data = model("mlp"), batch(2)
    lower = run(LinearProgram(only_open=False, solver=solver), judged, data)
    least, _ = smallest_margins(judged, data, THREAT)
    other = torch.isfinite(lower)
    assert (least - lower)[other].min() >= -1e-9
    known = torch.maximum(run(Polytope(), judged, data), run(Crown(), judged, data))
    assert (lower - known)[other].min() >= -1e-9


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_that_fails_leaves_the_dual_bound(solver, monkeypatch):
    def failing(self, *args, **kwargs):
        raise cp.SolverError("no")

    monkeypatch.setattr(cp.Problem, "solve", failing)
    monkeypatch.setattr(highspy.Highs, "run", lambda self: None)
    judged, data = model("mlp"), batch(2)
    lower = run(LinearProgram(only_open=False, solver=solver), judged, data)
    known = torch.maximum(run(Polytope(), judged, data), run(Crown(), judged, data))
    assert (lower >= known - 1e-9).all()
    assert (lower[torch.isfinite(lower)] < 1e5).all()


def test_an_unknown_solver_is_the_users_mistake():
    with pytest.raises(UserError, match="no solver 'gurobi': choose highs or cvxpy"):
        LinearProgram(solver="gurobi")


def test_multipliers_become_slopes_between_zero_and_one():
    zero = torch.tensor([1.0, 0.0, 0.0, -1.0, torch.nan, torch.inf])
    line = torch.tensor([1.0, 2.0, 0.0, 3.0, torch.nan, 1.0])
    found = slopes_from_multipliers(zero, line, torch.full((6,), 0.25))
    assert found.tolist() == [0.5, 1.0, 0.25, 1.0, 0.25, 1.0]


def test_multipliers_of_both_lines_become_an_overlap():
    zero, line, chord = (
        torch.tensor(part) for part in ([1.0, 0.0, -2.0], [1.0, 3.0, torch.nan], [5.0, 2.0, 4.0])
    )
    assert overlap_from_multipliers(zero, line, chord).tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms_are_refused(norm):
    with pytest.raises(UserError, match="no norm"):
        LinearProgram().run(model("mlp"), batch(), ThreatModel(norm, 0.1), Randomness(0))


def test_operations_without_a_triangle_are_refused_by_name():
    with pytest.raises(UserError, match="Sigmoidal"):
        run(LinearProgram(only_open=False), model("sigmoid"), batch())


def pooled(sign: float) -> Classifier:
    """Two logits, 0 and sign times the sum of the maxima of four windows of 3 x 3."""
    head = nn.Linear(4, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[sign] * 4, [0.0] * 4]))
        head.bias.zero_()
    return Classifier(nn.Sequential(nn.MaxPool2d(3), nn.Flatten(), head).eval(), num_classes=2)


@pytest.mark.parametrize("certifier", [LinearProgram(only_open=False), FastLinearProgram()])
def test_the_least_maximum_of_a_window_is_exact(certifier):
    # A maximum is convex: its least value over a box is the largest lower end, which no single line reaches.
    data = batch(6, (1, 6, 6), classes=1)
    low, high = THREAT.bounds(data.x.double())
    ends = [F.max_pool2d(end, 3).flatten(1).sum(1) for end in (low, high)]
    least = run(certifier, pooled(1.0), data)[:, 1]
    torch.testing.assert_close(least, ends[0], atol=1e-3 if certifier.name == "lp-fast" else 1e-9, rtol=0)
    assert (run(certifier, pooled(-1.0), data)[:, 1] <= -ends[1] + 1e-9).all()


def test_max_pooling_lies_between_its_dual_bounds_and_the_exact_answer():
    judged, data = model("max-pool"), batch(4)
    with torch.no_grad():
        data = Batch(data.x, judged.logits(data.x).argmax(1), data.index)
    solved = run(LinearProgram(only_open=False), judged, data)
    for start in (IntervalBounds(), Polytope(), Crown()):
        assert (solved >= run(start, judged, data) - 1e-9).all()
    least, points = smallest_margins(judged, data, THREAT, samples=100, steps=20)
    other = torch.arange(3) != data.y[:, None]
    assert points > 50
    assert (solved <= least + 1e-9)[other].all()
    assert (solved > run(Crown(), judged, data) + 1e-3)[other].any()


@pytest.mark.parametrize(("solver", "place"), [("highs", WarmProgram), ("cvxpy", ConvexProgram)])
def test_the_time_limit_reaches_the_solver(solver, place, monkeypatch):
    limits = []

    def stopped(self, group, alpha, seconds):
        limits.append(seconds)
        return []

    monkeypatch.setattr(place, "minimum" if solver == "highs" else "solve", stopped)
    run(LinearProgram(only_open=False, seconds=1.5, solver=solver), model("mlp"), batch(1))
    assert limits == [1.5, 1.5]


@pytest.mark.parametrize("lazy", [LinearProgram(), LinearProgram(neurons=0), LinearProgram(seconds=1e-9)])
def test_no_shortcut_falls_below_the_bounds_it_starts_from(lazy):
    judged, data = model("mlp"), batch()
    lower = run(lazy, judged, data)
    for start in (IntervalBounds(), Polytope(), Crown()):
        assert (lower >= run(start, judged, data) - 1e-9).all()
