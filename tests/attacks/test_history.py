"""Losses by step: one a look, the last or best of them that of the point returned; none unless asked for."""

from __future__ import annotations

import pytest
import torch

from attacks.apgd import APGD
from attacks.base import ATTACKS
from attacks.cascade import Cascade
from attacks.ifgsm import IteratedFGSM
from attacks.momentum import Momentum
from attacks.pgd import PGD
from attacks.square import Square
from models.base import Batch, Classifier
from models.norms import BALLS
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.attacks.test_contract import EPS, attack
from tests.builders import images, labelled, mlp

SEEING = [
    name for name in ATTACKS.names() if ATTACKS[name].access != "labels" and ATTACKS[name].norms[0] in BALLS
]


def losses_at(model: Classifier, batch: Batch, x: torch.Tensor) -> torch.Tensor:
    """max_{j != y} z_j - z_y of each sample, by hand."""
    logits = model.logits(x).detach().double()
    own = logits.gather(1, batch.y[:, None])[:, 0]
    return logits.scatter(1, batch.y[:, None], -torch.inf).amax(1) - own


def last(history: torch.Tensor) -> torch.Tensor:
    """The last entry of each row that is not NaN."""
    return history.gather(1, (~history.isnan()).sum(1, keepdim=True) - 1)[:, 0]


@pytest.mark.parametrize("name", SEEING)
def test_every_pass_is_a_look(name):
    model = mlp()
    batch, aside = labelled(model, images(20)), labelled(model, images(40, seed=7))
    y = torch.where(torch.arange(20) % 5 == 0, (batch.y + 1) % 4, batch.y)
    batch, norm = Batch(batch.x, y, batch.index), ATTACKS[name].norms[0]
    threat = ThreatModel(norm, EPS[norm])
    result = attack(name).run(model, batch, threat, Randomness(0), aside, batch_size=8, history=True)
    plain = attack(name).run(model, batch, threat, Randomness(0), aside, batch_size=8)
    assert plain.history is None
    assert torch.equal(result.x_adv, plain.x_adv)
    assert torch.equal((~result.history.isnan()).sum(1), result.forward)


@pytest.mark.parametrize(
    "search",
    [PGD(restarts=1), PGD(restarts=1, loss="margin"), IteratedFGSM(), Momentum()],
    ids=lambda s: s.name,
)
def test_the_last_loss_is_that_of_the_point_returned(search):
    model = mlp()
    batch = labelled(model, images(30))
    result = search.run(model, batch, ThreatModel("linf", 0.1), Randomness(0), history=True)
    assert 3 < int(result.success.sum()) < 29
    torch.testing.assert_close(last(result.history), losses_at(model, batch, result.x_adv), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.history[:, 0], losses_at(model, batch, batch.x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "search",
    [Square(queries=100), APGD(steps=20, loss="margin"), PGD(restarts=1, loss="margin", early_stop=False)],
    ids=lambda search: search.name,
)
def test_the_best_loss_is_that_of_the_point_returned(search):
    model = mlp()
    batch = labelled(model, images(30))
    result = search.run(model, batch, ThreatModel("linf", 0.1), Randomness(0), history=True)
    best = result.history.nan_to_num(-torch.inf).amax(1)
    torch.testing.assert_close(best, losses_at(model, batch, result.x_adv), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["deepfool", "cw"])
def test_the_nearest_point_of_a_minimal_attack_was_looked_at(name):
    model = mlp()
    batch = labelled(model, images(30))
    result = attack(name).run(model, batch, ThreatModel("l2", None), Randomness(0), history=True)
    final = losses_at(model, batch, result.x_adv)
    assert bool(((result.history - final[:, None]).abs().nan_to_num(1).amin(1) < 1e-5).all())


def test_a_cascade_joins_the_losses_of_its_stages():
    model = mlp()
    batch, threat = labelled(model, images(30)), ThreatModel("linf", 0.1)
    both = Cascade(attacks=("fgsm", PGD(restarts=1))).run(model, batch, threat, Randomness(0), history=True)
    first = Cascade(attacks=("fgsm",)).run(model, batch, threat, Randomness(0), history=True)
    width = first.history.shape[1]
    assert torch.equal(both.history[:, :width].nan_to_num(9), first.history.nan_to_num(9))
    assert both.history.shape[1] > width


def test_misclassified_inputs_have_no_losses():
    model = mlp()
    batch = labelled(model, images(4))
    wrong = Batch(batch.x, (batch.y + 1) % 4, batch.index)
    result = PGD().run(model, wrong, ThreatModel("linf", 0.1), Randomness(0), history=True)
    assert result.history.shape == (4, 0)
