"""The cascade: who sees what, who wins what, and a bill that adds up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from attacks.access import GradientAccess, LabelAccess
from attacks.base import Attack
from attacks.cascade import Cascade
from attacks.deepfool import DeepFool
from attacks.fgsm import FGSM
from attacks.pgd import PGD
from attacks.universal import Universal
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import Counting, images, labelled, linear, mlp

THREAT = ThreatModel("linf", 0.4)


@dataclass(frozen=True, kw_only=True)
class Step(Attack):
    """Moves each sample whose index is a multiple of `each`, after `asks` questions; notes whom it saw."""

    paper = "none"
    norms = ("linf", "l2")
    minimal = True
    access = "labels"
    each: int = 1
    by: float = 0.3
    asks: int = 0
    seen: list

    def propose(self, model, batch, threat, randomness, fitted):
        assert type(model) is LabelAccess
        self.seen.append(batch.index.tolist())
        for _ in range(self.asks):
            model.labels(batch.x, torch.arange(len(batch)))
        chosen = batch.index % self.each == 0
        return torch.where(chosen[:, None], batch.x - self.by, batch.x)


Step.name = "step"


def threshold():
    """Class 1 where the only entry is above a half, else class 0."""
    model = linear(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.5, -0.5]))
    return model, Batch.of(torch.full((12, 1), 0.6), torch.ones(12, dtype=torch.int64))


def test_later_stages_see_the_survivors_and_the_report_says_who_won():
    model, batch = threshold()
    first, second = Step(each=2, seen=[]), Step(each=3, asks=2, seen=[])
    result = Cascade(attacks=(first, second)).run(model, batch, THREAT, Randomness(0))
    assert first.seen == [list(range(12))]
    assert second.seen == [[1, 3, 5, 7, 9, 11]]
    assert result.success.tolist() == [i % 2 == 0 or i % 3 == 0 for i in range(12)]
    assert [name for name in result.won_by if name] == ["step"] * 8
    assert result.wins == {"step": 8}
    # One question a sample and stage goes to the check; the second stage asks two of its own.
    assert result.forward.tolist() == [1 if i % 2 == 0 else 1 + 2 + 1 for i in range(12)]


def test_the_bill_is_the_stages_bills_and_the_checks():
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch, threat = labelled(model, images(40)), ThreatModel("linf", 0.1)
    counter.forward_samples = 0
    whole = Cascade(attacks=("fgsm", "pgd")).run(model, batch, threat, Randomness(0), batch_size=16)
    assert counter.forward_samples == int(whole.forward.sum()) + 2 * len(batch)
    alone = FGSM().run(model, batch, threat, Randomness(0))
    left = ~alone.success
    rest = PGD().run(model, batch[left], threat, Randomness(0).child("stage", 1))
    assert torch.equal(whole.success[left], rest.success)
    assert torch.equal(whole.forward[left], rest.forward + alone.forward[left] + 2)
    assert torch.equal(whole.backward[left], rest.backward + alone.backward[left])
    assert whole.wins == {"fgsm": int(alone.success.sum()), "pgd": int(rest.success.sum())}


def test_no_weaker_than_any_stage():
    model = mlp(classes=5, hidden=32)
    batch, threat = labelled(model, images(60)), ThreatModel("l2", 0.3)
    worst = Cascade(attacks=("fgsm", "pgd", "deepfool")).run(model, batch, threat, Randomness(0)).success
    for stage in (FGSM(), DeepFool()):
        assert bool((worst | ~stage.run(model, batch, threat, Randomness(0)).success).all())


def test_without_a_radius_everyone_is_seen_and_the_nearest_point_kept():
    model, batch = threshold()
    far, near, idle = Step(by=0.4, seen=[]), Step(by=0.2, each=2, seen=[]), Step(by=0.3, each=4, seen=[])
    free = ThreatModel("linf", None)
    result = Cascade(attacks=(far, near, idle)).run(model, batch, free, Randomness(0))
    assert [len(seen) for stage in (far, near, idle) for seen in stage.seen] == [12, 12, 12]
    expected = torch.tensor([0.2 if i % 2 == 0 else 0.4 for i in range(12)], dtype=torch.float64)
    torch.testing.assert_close(result.distance, expected, rtol=0, atol=1e-6)


def test_illegal_points_win_nothing():
    model, batch = threshold()
    far = Step(by=0.5, seen=[])
    result = Cascade(attacks=(far, Step(each=3, seen=[]))).run(model, batch, THREAT, Randomness(0))
    assert result.success.tolist() == [i % 3 == 0 for i in range(12)]


def test_the_access_is_the_widest_and_each_stage_keeps_its_own():
    labels = Step(seen=[])
    assert Cascade(attacks=(labels,)).access == "labels"
    assert Cascade(attacks=(labels, "square")).access == "scores"
    assert Cascade(attacks=(labels, "square", "fgsm")).access == "gradients"
    assert Cascade(attacks=(DeepFool(), "lbfgs")).norms == ("l2",)
    assert Cascade(attacks=("deepfool", "cw")).minimal
    assert not Cascade(attacks=("deepfool", "pgd")).minimal


def test_a_fitted_stage_gets_its_images_and_hands_over_what_it_made():
    model = mlp()
    batch, aside = labelled(model, images(20)), labelled(model, images(30, seed=7))
    attack = Cascade(attacks=("fgsm", Universal(passes=1)))
    with pytest.raises(UserError, match="aside"):
        attack.run(model, batch, THREAT, Randomness(0))
    result = attack.run(model, batch, THREAT, Randomness(0), aside)
    assert list(result.artifacts) == ["1.universal.perturbation"]
    assert result.shared_forward > 0


def test_won_by_survives_batches_and_wrong_inputs():
    model, batch = threshold()
    wrong = Batch(batch.x, (batch.index % 4 != 1).long(), batch.index)
    attack = Cascade(attacks=(Step(each=2, seen=[]),))
    for size in (1, 5, 64):
        result = attack.run(model, wrong, THREAT, Randomness(0), batch_size=size)
        assert result.won_by == tuple("step" if i % 2 == 0 else "" for i in range(12))


def test_mistakes_are_named():
    with pytest.raises(UserError, match="at least one attack"):
        Cascade(attacks=())
    with pytest.raises(UserError, match="did you mean pgd"):
        Cascade(attacks=("pdg",))
    with pytest.raises(UserError, match="share no norm"):
        Cascade(attacks=("lbfgs", "r-fgsm"))
    model, batch = threshold()
    with pytest.raises(UserError, match="needs an eps"):
        Cascade(attacks=("fgsm",)).run(model, batch, ThreatModel("linf", None), Randomness(0))


def test_parameters_tell_stages_apart():
    values = Cascade(attacks=("fgsm", PGD(steps=7))).parameters()["attacks"]
    assert values["0"]["name"] == "fgsm"
    assert values["1"]["steps"] == 7
    assert GradientAccess(mlp(), 2).won_by() == ["", ""]
