"""Optimised slopes: between crown and the linear program, on the same intermediate bounds."""

import pytest
import torch

from certify.alpha_crown import AlphaCrown
from certify.crown import Crown
from certify.lp import LinearProgram
from certify.polytope import Polytope
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, model, smallest_margins

THREAT = ThreatModel("linf", 0.1)


def run(certifier, family):
    return certifier.run(model(family), batch(4), THREAT, Randomness(0))


@pytest.mark.parametrize("family", ["mlp", "conv", "residual", "leaky"])
def test_it_lies_between_crown_and_the_linear_program(family):
    best = run(AlphaCrown(), family).lower
    other = torch.isfinite(best)
    for below in (Crown(), Polytope()):
        assert (best - run(below, family).lower)[other].min() >= -1e-9
    optimum = run(LinearProgram(only_open=False), family).lower
    assert (optimum - best)[other].min() >= -1e-7


def test_more_steps_never_hurt_and_close_most_of_the_gap_on_open_samples():
    none, few, many = (run(AlphaCrown(steps=steps), "mlp").margin for steps in (0, 5, 60))
    optimum = run(LinearProgram(only_open=False), "mlp").margin
    open_ = none <= 0
    assert open_.any()
    assert (few >= none - 1e-12).all()
    assert ((many - none)[open_] >= 0.8 * (optimum - none)[open_]).all()


def test_samples_that_are_proved_keep_their_bound():
    easy = AlphaCrown().run(model("mlp"), batch(4), ThreatModel("linf", 0.0), Randomness(0)).lower
    crown = Crown().run(model("mlp"), batch(4), ThreatModel("linf", 0.0), Randomness(0)).lower
    assert torch.allclose(easy, crown, atol=1e-9)


@pytest.mark.parametrize("family", ["mlp", "conv", "residual", "sigmoid", "joined"])
def test_climbing_ranges_tighten_open_samples_and_stay_below_what_attacks_reach(family):
    plain, whole = run(AlphaCrown(), family).lower, run(AlphaCrown(intermediate=True), family).lower
    other = torch.isfinite(plain)
    assert ((whole - plain)[other] >= 0).all()
    if family != "sigmoid":
        assert (whole - plain)[other].max() > 1e-4
    least, _ = smallest_margins(model(family), batch(4), THREAT, samples=30)
    assert (whole <= least + 1e-9)[other].all()
