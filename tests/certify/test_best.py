"""The best of several bounds: at least each, certified where any is, and no work on what is settled."""

import warnings

import pytest
import torch

from certify.alpha_crown import AlphaCrown
from certify.base import CERTIFIERS, Certifier
from certify.best import Best
from certify.crown import Crown
from certify.ibp import IntervalBounds
from defenses.zoo import ModelName, load
from models.base import Batch
from models.data import load_data
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, model

STEPS = Best().steps


def run(certifier, judged, data, threat):
    return certifier.run(judged, data, threat, Randomness(0))


def correctly_labelled(judged, data):
    with torch.no_grad():
        return Batch.of(data.x, judged.logits(data.x).argmax(1))


@pytest.mark.parametrize(
    ("norm", "sizes"), [("linf", (0.01, 0.03, 0.06)), ("l2", (0.05, 0.2, 0.4)), ("l1", (0.2, 0.8))]
)
@pytest.mark.parametrize("family", ["mlp", "conv", "residual", "sigmoid", "max-pool"])
def test_it_is_every_step_at_once(family, norm, sizes):
    judged = model(family)
    data = correctly_labelled(judged, batch(12))
    for eps in sizes:
        threat = ThreatModel(norm, eps)
        best = run(Best(), judged, data, threat)
        parts = [
            run(CERTIFIERS[name](), judged, data, threat) for name in STEPS if norm in CERTIFIERS[name].norms
        ]
        assert (best.certified | ~torch.stack([part.certified for part in parts]).any(0)).all()
        names = [name for name in STEPS if norm in CERTIFIERS[name].norms]
        assert set(best.settled_by) <= {*names, "open"}
        for i, name in enumerate(best.settled_by):
            assert best.certified[i] == (name != "open")
            used = parts if name == "open" else parts[: names.index(name) + 1]
            expected = torch.stack([part.lower[i] for part in used]).amax(0)
            assert torch.allclose(best.lower[i], expected, atol=1e-7)
            if name != "open":
                before = [part.lower[i] for part in used[:-1]] or [torch.full((3,), -torch.inf)]
                assert float(torch.stack(before).amax(0).amin()) < 1e-3


def test_later_steps_see_only_what_is_open(monkeypatch):
    judged, data = load(ModelName.parse("conv-small+polytope")), load_data("mnist5k")
    images, threat = data.batch(data.panel(24)), ThreatModel("linf", 0.13)
    seen = dict.fromkeys(("ibp", "crown", "alpha-crown"), 0)
    for part in (IntervalBounds, Crown, AlphaCrown):
        bound = part.bound

        def counted(self, model, batch, threat, randomness, bound=bound):
            seen[self.name] += len(batch)
            return bound(self, model, batch, threat, randomness)

        monkeypatch.setattr(part, "bound", counted)
    best = run(Best(steps=("ibp", "crown", "alpha-crown")), judged, images, threat)
    settled = [best.settled_by.count(name) for name in seen]
    assert seen == {"ibp": 24, "crown": 24 - settled[0], "alpha-crown": 24 - sum(settled[:2])}
    assert 0 < settled[0] < 24
    assert sum(settled) == int(best.certified.sum()) > 12


def test_a_step_that_does_not_apply_is_left_out_and_said():
    judged = model("sigmoid")
    data, threat = correctly_labelled(judged, batch(4)), ThreatModel("linf", 0.03)
    with pytest.warns(UserWarning, match="best leaves out lp: Sigmoidal"):
        both = run(Best(steps=("lp", "crown")), judged, data, threat)
    alone = run(Crown(), judged, data, threat)
    assert torch.equal(both.lower, alone.lower)
    with (
        pytest.warns(UserWarning, match="leaves out"),
        pytest.raises(NotApplicable, match="no step of best applies"),
    ):
        run(Best(steps=("lp", "lp-fast")), judged, data, threat)


def test_a_step_without_the_norm_takes_no_part():
    judged, data = model("mlp"), batch(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = run(Best(steps=("l1-product", "ibp")), judged, data, ThreatModel("l2", 0.1))
    assert torch.equal(both.lower, run(IntervalBounds(), judged, data, ThreatModel("l2", 0.1)).lower)
    assert Best(steps=("l1-product", "lp")).norms == ("linf",)
    with pytest.raises(UserError, match="no norm 'l2'"):
        run(Best(steps=("l1-product", "lp")), judged, data, ThreatModel("l2", 0.1))


def test_a_complete_step_hands_its_counterexamples_on():
    judged = model("mlp")
    data = correctly_labelled(judged, batch(8))
    best = run(Best(steps=("ibp", "exact")), judged, data, ThreatModel("linf", 0.15))
    assert best.broken is not None
    assert bool(best.broken.any())
    assert (best.broken | best.certified).all()
    with torch.no_grad():
        wrong = judged.logits(best.witness).argmax(1) != data.y
    assert torch.equal(wrong, best.broken)


def test_every_samples_answer_is_its_own():
    judged = model("conv")
    data, threat = correctly_labelled(judged, batch(9)), ThreatModel("linf", 0.04)
    whole = run(Best(), judged, data, threat)
    order = torch.tensor([8, 0, 5, 2])
    part = run(Best(), judged, data[order], threat)
    assert torch.allclose(part.lower, whole.lower[order], atol=1e-9)
    assert part.settled_by == tuple(whole.settled_by[i] for i in order.tolist())


@pytest.mark.parametrize(
    ("steps", "message"),
    [((), "at least one"), (("best",), "cannot be a step"), (("ibq",), "did you mean ibp")],
)
def test_mistakes_in_the_list_are_named(steps, message):
    with pytest.raises(UserError, match=message):
        Best(steps=steps)


def test_statistical_steps_are_refused():
    class Guess(Certifier):
        name = "guess"
        confidence = 0.99

        def bound(self, model, batch, threat, randomness):
            return torch.zeros(len(batch), 3)

    with pytest.raises(UserError, match="'guess' is statistical"):
        Best(steps=("ibp", Guess()))


def test_its_parameters_name_each_step_and_its_own():
    found = Best(steps=("ibp", AlphaCrown(steps=3))).parameters()
    climbing = {"name": "alpha-crown", "steps": 3, "rate": 0.25, "intermediate": False}
    assert found == {"steps": {"0": {"name": "ibp"}, "1": climbing}}
