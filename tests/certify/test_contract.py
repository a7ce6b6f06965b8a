"""Every registered certificate against every operation family: registered means tested."""

import itertools

import pytest
import torch

from certify.base import CERTIFIERS
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box
from models.threats import threat_named
from models.transformation import Transformation
from tests.certify.builders import FAMILIES, batch, model, smallest_margins, smallest_moved_margins

import_modules("certify")
PROOFS = [name for name in CERTIFIERS if CERTIFIERS[name].confidence == 1.0]
UNIVERSAL = ("ibp", "crown-ibp", "polytope", "crown")
EPS = {"linf": 0.05, "l2": 0.3, "l1": 0.6}
EPS |= {
    "spatial": 0.1,
    "rotation": 3,
    "translation": 0.05,
    "lighting": 0.1,
    "brightness": 0.1,
    "contrast": 0.2,
    "l0": 1,
    "mask": 0.03,
    "patch": 0.12,
}
BALLS = [name for name in PROOFS if "linf" in CERTIFIERS[name].norms or "l2" in CERTIFIERS[name].norms]
CASES = [(name, norm, family) for name in PROOFS for norm in CERTIFIERS[name].norms for family in FAMILIES]
SLOW = (
    ("lp-fast", "linf", "max-pool"),
    ("lp-fast", "linf", "selected"),
    ("exact", "l2", "jumping"),
    ("exact", "l1", "jumping"),
    ("exact", "linf", "jumping"),
    ("parameter-split", "translation", "jumping"),
    ("parameter-split", "lighting", "jumping"),
    ("window-split", "l0", "jumping"),
    ("window-split", "mask", "jumping"),
)


def test_the_cases_cover_every_proof_norm_and_family():
    assert {"ibp", "polytope", "crown", "lp"} <= set(PROOFS)
    assert len(CASES) == sum(len(CERTIFIERS[name].norms) for name in PROOFS) * len(FAMILIES)
    assert len(FAMILIES) == 19
    assert len(CASES) >= 100


def certifier(name):
    """The certificate with small settings."""
    small = {"parameter-split": {"cells": 100}, "window-split": {"seconds": 2.0}, "exact": {"seconds": 5.0}}
    return CERTIFIERS[name](**small.get(name, {}))


@pytest.mark.parametrize(
    ("name", "norm", "family"),
    [pytest.param(*case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES],
)
def test_no_legal_point_has_a_smaller_margin(name, norm, family):
    judged, data, threat = model(family), batch(), threat_named(norm, EPS[norm])
    try:
        lower = certifier(name).run(judged, data, threat, Randomness(0)).lower
    except UserError:
        if name in UNIVERSAL or family == "mlp":
            raise
        pytest.skip(f"{name} refuses {family}")
    if isinstance(threat, Transformation):
        least, points = smallest_moved_margins(judged, data, threat)
    else:
        least, points = smallest_margins(judged, data, threat, samples=20, steps=8)
    assert points > 50
    other = torch.arange(3) != data.y[:, None]
    assert (least - lower)[other].min() >= (-1e-5 if isinstance(threat, Transformation) else -1e-9)
    assert torch.isinf(lower[~other]).all()


@pytest.mark.parametrize("name", BALLS)
def test_bounds_fall_with_eps_and_do_not_depend_on_the_batch(name):
    judged, data = model("mlp"), batch(4)
    judge = certifier(name)
    norm = judge.norms[0]
    threats = [threat_named(norm, EPS[norm] * k) for k in (0.0, 0.3, 1.0, 2.0)]
    runs = [judge.run(judged, data, threat, Randomness(0)) for threat in threats]
    for small, large in itertools.pairwise(runs):
        assert (small.margin >= large.margin - 1e-9).all()
    parts = [data[i : i + 1] for i in range(4)]
    singles = [judge.run(judged, part, threats[2], Randomness(0)).lower for part in parts]
    assert torch.allclose(torch.cat(singles), runs[2].lower, atol=1e-7)


@pytest.mark.parametrize("name", PROOFS)
def test_the_model_and_the_random_state_are_left_alone(name):
    judged, data = model("batch-norm" if name in UNIVERSAL else "mlp"), batch(2)
    next(judged.parameters()).requires_grad_(False)
    judged.train()
    judged.eval()
    before = {key: value.clone() for key, value in judged.state_dict().items()}
    flags = [(p.requires_grad, p.dtype) for p in judged.parameters()]
    modes = [module.training for module in judged.modules()]
    state, default = torch.get_rng_state(), torch.get_default_dtype()
    judge = certifier(name)
    judge.run(judged, data, threat_named(judge.norms[0], 0.01), Randomness(0))
    after = judged.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {key: value.dtype for key, value in before.items()} == {k: v.dtype for k, v in after.items()}
    assert flags == [(p.requires_grad, p.dtype) for p in judged.parameters()]
    assert modes == [module.training for module in judged.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert default == torch.get_default_dtype()


@pytest.mark.parametrize("name", PROOFS)
def test_a_weight_that_is_nan_is_the_users_mistake(name):
    judged, data = model("mlp"), batch(2)
    with torch.no_grad():
        judged.network[1].weight[0, 0] = torch.nan
    judge = certifier(name)
    with pytest.raises(UserError, match="NaN"):
        judge.run(judged, data, threat_named(judge.norms[0], 0.01), Randomness(0))


@pytest.mark.parametrize("name", BALLS)
def test_inputs_outside_the_threats_box_are_refused(name):
    """A set that does not hold its own centre would be bounded as if it were empty."""
    norm, judged = CERTIFIERS[name].norms[0], model("mlp")
    with pytest.raises(UserError, match=r"but the threat's box is .*ThreatModel\(norm, eps, model\.box\)"):
        certifier(name).run(judged, batch(2), threat_named(norm, 1e-4, Box(0.0, 1e-3)), Randomness(0))
