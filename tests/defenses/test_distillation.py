"""Defensive distillation: soft labels by hand, a mask that the audit sees, and what lies behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from attacks.pgd import PGD
from bench.auditor import audit
from defenses import distillation
from defenses.base import Defense
from defenses.distillation import Distillation
from defenses.none import NoDefense
from defenses.temperature import Temperature
from defenses.training import train
from defenses.zoo import ModelName, make
from models.base import Batch, Classifier
from models.data import Dataset
from models.errors import UserError
from models.probes import signs
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel

THREAT = ThreatModel("linf", 0.2)


def toy() -> Dataset:
    """150 images of 8x8 whose brighter third tells their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % 3
    pixels = torch.randint(0, 150, (150, 1, 9, 9), generator=generator)
    for label in range(3):
        pixels[labels == label, :, 3 * label : 3 * label + 3] += 90
    return Dataset("toy", pixels.to(torch.uint8), labels, 3)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(81, 32), nn.ReLU(), nn.Linear(32, 3))


def trained(defense: Defense, seed: int = 0) -> nn.Module:
    net = network(seed)
    for _ in train(net, defense, Recipe(epochs=40, batch_size=50, learning_rate=2e-2), toy(), seed=0):
        pass
    return net


@pytest.fixture(scope="module")
def distilled() -> Classifier:
    """The student of a teacher at temperature 100."""
    teacher = trained(Temperature())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "static_network", lambda name, device: teacher)
        return Classifier(trained(Distillation(), seed=1), num_classes=3)


def batch(n: int = 60) -> Batch:
    return toy().batch(torch.arange(n))


def test_the_labels_are_the_teachers_at_the_same_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, net, some = network(5), network(1), batch()
    monkeypatch.setattr(distillation, "static_network", lambda name, device: teacher)
    for heat in (1.0, 7.0):
        soft = (teacher(some.x) / heat).softmax(1)
        by_hand = -(soft * (net(some.x) / heat).log_softmax(1)).sum() / len(some)
        found = Distillation(temperature=heat).loss(net, some, 0.5, Randomness(0))
        assert float(found.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-6)
    # Gibbs: no student does better than the teacher itself, whose gradient is zero.
    own = Distillation(temperature=7.0).loss(teacher, some, 0.5, Randomness(0))
    assert float(own.detach()) < float(found.detach())
    own.backward()
    assert max(float(p.grad.abs().max()) for p in teacher.parameters()) < 1e-6


def test_at_temperature_one_it_is_ordinary_training() -> None:
    net, some = network(), batch()
    plain = functional.cross_entropy(net(some.x), some.y).detach()
    assert float(Temperature(temperature=1.0).loss(net, some, 0.5, Randomness(0)).detach()) == float(plain)
    scaled = functional.cross_entropy(net(some.x) / 40, some.y).detach()
    assert float(Temperature(temperature=40.0).loss(net, some, 0.5, Randomness(0)).detach()) == float(scaled)


def test_a_distilled_network_has_learnt_and_is_flagged(distilled: Classifier) -> None:
    some = batch()
    assert float((distilled.logits(some.x).argmax(1) == some.y).double().mean()) > 0.97
    assert "saturated" in {sign.word for sign in signs(distilled, some, THREAT)}
    honest = Classifier(trained(NoDefense()), num_classes=3)
    assert signs(honest, some, THREAT) == []


def test_it_looks_robust_to_the_cross_entropy_and_is_not(distilled: Classifier) -> None:
    held = {}
    for loss in ("ce", "dlr", "margin"):
        attack = PGD(restarts=1, loss=loss)
        held[loss] = 1 - float(attack.run(distilled, batch(), THREAT, Randomness(0)).success.double().mean())
    assert held["ce"] > held["margin"] + 0.3


@pytest.mark.slow
def test_the_audit_flags_it_and_finds_the_truth_behind_the_mask(distilled: Classifier) -> None:
    found = audit(distilled, batch().x, batch().y, eps=THREAT.radius)
    assert found.flags
    assert found.naive > found.attacked + 0.3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conv-small+distillation(temperature=0)", "temperature > 0"),
        ("conv-small+temperature(temperature=0)", "temperature > 0"),
        ("conv-small+distillation(teacher=lenett)", "did you mean lenet"),
        ("linear-3-7+distillation", "is for mnist-3-7"),
    ],
)
def test_impossible_parameters_are_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelName.parse(text).parts()


def test_a_teacher_without_weights_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    name = ModelName.parse("conv-small+distillation(teacher=lenet+mixup(alpha=7.5))")
    with pytest.raises(UserError, match=r"bench train 'lenet\+mixup\(alpha=7.5\)'"):
        next(make(name, None, folder=tmp_path))
