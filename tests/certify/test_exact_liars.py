"""The exact certificate when its solvers lie: nothing false is proved, and no false witness handed in."""

import numpy as np
import pytest
import torch

from certify import settle as steps
from certify import settle_folded
from certify.exact import Exact, settle
from certify.mixed_integer import Answer
from certify.property import Clause, Property
from certify.warm_program import Multipliers, WarmProgram
from models.randomness import Randomness
from tests.certify.builders import smallest_margins
from tests.certify.planes import least_excess, small_network
from tests.certify.test_exact import assert_witness, classified


@pytest.fixture
def on_phases(monkeypatch):
    """Branches on phases of ReLUs, so that the solvers are asked."""
    monkeypatch.setattr(steps, "FEW_INPUTS", 0)


def hard_cases():
    """Properties that hold, or fail, by too little for a descent or a single pass to tell."""
    for seed in range(3):
        network = small_network(2, 6, 6, 3, seed=seed)
        low, high = torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0])
        rows = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        least = least_excess(network, low.tolist(), high.tolist(), Clause(rows, torch.zeros(1)))
        for side in (1, -1):
            offset = torch.tensor([side * 1e-4 - least], dtype=torch.float64)
            yield network, Property(low, high, (Clause(rows, offset),)), side


GARBAGE = {
    "not a number": torch.nan, "infinite": torch.inf, "negative": -7.0, "large": 1e12, "zero": 0.0,
}  # fmt: skip
QUICK = ("not a number", "large")


@pytest.mark.usefixtures("on_phases")
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(value, marks=() if name in QUICK else pytest.mark.slow, id=name)
        for name, value in GARBAGE.items()
    ],
)
def test_lying_solvers_prove_nothing_false_and_hand_in_no_false_witness(value, monkeypatch):
    asked = []

    def solve(self, group, sign, alpha, seconds, enough):
        asked.append(group)
        m, d = self.folded.neurons, self.folded.input_rows.shape[1]
        full = [torch.full((size,), value, dtype=torch.float64) for size in (m, m, d, m)]
        return [Multipliers(*full)]

    def answer(folded, targets, group, seconds):
        asked.append(group)
        point = np.full(folded.input_rows.shape[1], value)
        return Answer(point, False) if len(asked) % 2 else Answer(None, True)

    monkeypatch.setattr(WarmProgram, "solve", solve)
    monkeypatch.setattr(settle_folded, "feasible_point", answer)
    monkeypatch.setattr(steps, "search", lambda *args, **budget: None)
    for network, prop, side in hard_cases():
        verdict = settle(network, prop, seconds=0.5)
        assert verdict.status in ("open", "certified" if side > 0 else "broken")
        assert verdict.bound <= side * 1e-4 + 1e-9
        if verdict.status == "broken":
            assert_witness(network, prop, verdict)
    assert asked


@pytest.mark.usefixtures("on_phases")
@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE)
def test_a_classifier_is_not_broken_by_a_solvers_garbage(value, monkeypatch):
    def solve(self, group, sign, alpha, seconds, enough):
        m, d = self.folded.neurons, self.folded.input_rows.shape[1]
        full = [torch.full((size,), value, dtype=torch.float64) for size in (m, m, d, m)]
        return [Multipliers(*full)]

    monkeypatch.setattr(WarmProgram, "solve", solve)
    honest = Exact(seconds=20)
    for seed in (0, 8):
        judged, data, threat = classified(seed, n=4, eps=0.2, widths=(3, 8, 8, 3))
        found = honest.run(judged, data, threat, Randomness(0))
        assert torch.isfinite(found.witness).all()
        assert threat.contains(data.x, found.witness).all()
        least, _ = smallest_margins(judged, data, threat, samples=100)
        assert (found.lower - least)[torch.isfinite(found.lower)].max() <= 1e-9
        assert (found.certified | found.broken).all()
