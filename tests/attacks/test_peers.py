"""No weaker than Foolbox at equal steps, on a trained network and 50 images."""

from __future__ import annotations

import pytest
import torch

from attacks.cw import CarliniWagner
from attacks.deepfool import DeepFool
from attacks.pgd import PGD
from defenses.zoo import ModelName, load
from models.data import load_data
from models.randomness import Randomness
from models.threat import ThreatModel

foolbox = pytest.importorskip("foolbox", reason="the comparison needs foolbox: pip install '.[peers]'")


@pytest.fixture(scope="module")
def zoo():
    model, data = load(ModelName.parse("fc500-150-10")), load_data("mnist5k")
    batch = data.batch(data.panel(60))
    right = model.logits(batch.x).argmax(1) == batch.y
    return model, foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), batch[right][:50]


def theirs(attack, peer, batch, eps):
    torch.manual_seed(0)
    _, points, success = attack(peer, batch.x, batch.y, epsilons=eps)
    return points, success


@pytest.mark.parametrize("eps", [0.04, 0.06])
def test_pgd(zoo, eps):
    model, peer, batch = zoo
    attack = foolbox.attacks.LinfPGD(steps=40, rel_stepsize=0.05, random_start=False)
    _, success = theirs(attack, peer, batch, eps)
    ours = PGD(steps=40, restarts=1, relative_step=0.05).run(
        model, batch, ThreatModel("linf", eps), Randomness(0)
    )
    assert 0 < int(success.sum()) < 50
    assert int(ours.success.sum()) >= int(success.sum())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool(zoo, norm):
    model, peer, batch = zoo
    attack = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}[norm]
    points, success = theirs(attack(steps=50, candidates=10, overshoot=0.02), peer, batch, None)
    threat = ThreatModel(norm, None)
    ours = DeepFool().run(model, batch, threat, Randomness(0))
    assert bool(ours.success[success].all())
    distance = threat.distance(batch.x, points)[success]
    assert float(ours.distance[success].mean()) <= 1.001 * float(distance.mean())


def test_cw(zoo):
    model, peer, batch = zoo
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=5, steps=50, stepsize=0.04)
    points, success = theirs(attack, peer, batch, None)
    threat = ThreatModel("l2", None)
    ours = CarliniWagner(rounds=5, steps=50, learning_rate=0.04).run(model, batch, threat, Randomness(0))
    assert bool(ours.success.all())
    distance = threat.distance(batch.x, points)[success]
    assert float(ours.distance[success].mean()) <= float(distance.mean())
