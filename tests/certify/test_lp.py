"""The linear program: exact on the relaxation, and never believed."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from certify import lp
from certify.crown import Crown
from certify.ibp import IntervalBounds
from certify.lp import LinearProgram, Program
from certify.polytope import Polytope
from certify.witness import slopes_from_multipliers
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, model, smallest_margins

SOLVED = ["mlp", "leaky", "conv", "residual", "batch-norm", "average-pool", "normalised"]
THREAT = ThreatModel("linf", 0.08)


def run(certifier, judged, data):
    return certifier.run(judged, data, THREAT, Randomness(0)).lower


@pytest.mark.parametrize("family", SOLVED)
def test_what_is_proved_is_the_programs_optimum(family, monkeypatch):
    optima = []
    solve = Program.multipliers

    def record(self, value, seconds):
        found = solve(self, value, seconds)
        optima.append(self.problem.value + float(value.constant))
        return found

    monkeypatch.setattr(Program, "multipliers", record)
    judged, data = model(family), batch(2)
    lower = run(LinearProgram(only_open=False), judged, data)
    known = torch.maximum(run(Polytope(), judged, data), run(Crown(), judged, data))
    other = torch.isfinite(lower)
    assert len(optima) == 4
    assert lower[other].numpy() == pytest.approx(np.array(optima), abs=1e-6)
    assert (lower - known)[other].min() >= -1e-9
    least, _ = smallest_margins(judged, data, THREAT)
    assert (least - lower)[other].min() >= -1e-9


def test_only_open_classes_are_solved_by_default():
    judged, data = model("mlp"), batch(4)
    known = torch.maximum(run(Polytope(), judged, data), run(Crown(), judged, data))
    full, default = run(LinearProgram(only_open=False), judged, data), run(LinearProgram(), judged, data)
    open_ = known <= 0
    assert torch.allclose(default[open_], full[open_], atol=1e-9)
    assert (full >= default - 1e-9).all()


LIES = {
    "too large": lambda zero, line: (zero + 1e3, line + 1e6),
    "negative": lambda zero, line: (-zero - 1, -line - 5),
    "not a number": lambda zero, line: (zero * np.nan, line * np.nan),
    "infinite": lambda zero, line: (zero + np.inf, line),
    "zero": lambda zero, line: (zero * 0, line * 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_solver_proves_nothing_false(lie, monkeypatch):
    solve = cp.Problem.solve

    def lying(self, *args, **kwargs):
        solve(self, *args, **kwargs)
        first, second = self.constraints[:2]
        values = LIES[lie](np.asarray(first.dual_value), np.asarray(second.dual_value))
        for constraint, value in zip((first, second), values, strict=True):
            constraint.dual_variables[0].save_value(value)
        self._value = 1e6
        return 1e6

    monkeypatch.setattr(cp.Problem, "solve", lying)
    judged, data = model("mlp"), batch(2)
    lower = run(LinearProgram(only_open=False), judged, data)
    least, _ = smallest_margins(judged, data, THREAT)
    other = torch.isfinite(lower)
    assert (least - lower)[other].min() >= -1e-9
    known = torch.maximum(run(Polytope(), judged, data), run(Crown(), judged, data))
    assert (lower - known)[other].min() >= -1e-9


def test_a_solver_that_fails_leaves_the_dual_bound(monkeypatch):
    def failing(self, *args, **kwargs):
        raise cp.SolverError("no")

    monkeypatch.setattr(cp.Problem, "solve", failing)
    judged, data = model("mlp"), batch(2)
    lower = run(LinearProgram(only_open=False), judged, data)
    known = torch.maximum(run(Polytope(), judged, data), run(Crown(), judged, data))
    assert (lower >= known - 1e-9).all()
    assert (lower[torch.isfinite(lower)] < 1e5).all()


def test_multipliers_become_slopes_between_zero_and_one():
    zero = torch.tensor([1.0, 0.0, 0.0, -1.0, torch.nan, torch.inf])
    line = torch.tensor([1.0, 2.0, 0.0, 3.0, torch.nan, 1.0])
    found = slopes_from_multipliers(zero, line, torch.full((6,), 0.25))
    assert found.tolist() == [0.5, 1.0, 0.25, 1.0, 0.25, 1.0]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms_are_refused(norm):
    with pytest.raises(UserError, match="no norm"):
        LinearProgram().run(model("mlp"), batch(), ThreatModel(norm, 0.1), Randomness(0))


@pytest.mark.parametrize(("family", "name"), [("max-pool", "MaxPool"), ("sigmoid", "Sigmoidal")])
def test_operations_without_a_triangle_are_refused_by_name(family, name):
    with pytest.raises(UserError, match=name):
        run(LinearProgram(only_open=False), model(family), batch())


def test_the_time_limit_reaches_the_solver(monkeypatch):
    limits = []
    monkeypatch.setattr(lp.Program, "multipliers", lambda self, value, seconds: limits.append(seconds))
    run(LinearProgram(only_open=False, seconds=1.5), model("mlp"), batch(1))
    assert limits == [1.5, 1.5]


@pytest.mark.parametrize("lazy", [LinearProgram(), LinearProgram(neurons=0), LinearProgram(seconds=1e-9)])
def test_no_shortcut_falls_below_the_bounds_it_starts_from(lazy):
    judged, data = model("mlp"), batch()
    lower = run(lazy, judged, data)
    for start in (IntervalBounds(), Polytope(), Crown()):
        assert (lower >= run(start, judged, data) - 1e-9).all()
