"""Transfer from an ensemble: exact where the members agree, above single members on a held-out one."""

from __future__ import annotations

import pytest
import torch

from attacks.ensemble_transfer import EnsembleTransfer
from attacks.pgd import PGD
from attacks.transfer import Transfer
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import Counting, images, labelled, mlp

THREAT = ThreatModel("linf", 0.15)


def test_copies_of_one_source_transfer_like_it():
    target = mlp()
    batch, attack = labelled(target, images(40)), PGD(restarts=1, loss="margin", early_stop=False)
    alone = Transfer(source=mlp(seed=9), attack=attack).run(target, batch, THREAT, Randomness(0))
    copies = EnsembleTransfer(sources=(mlp(seed=9), mlp(seed=9)), attack=attack)
    result = copies.run(target, batch, THREAT, Randomness(0))
    torch.testing.assert_close(result.x_adv, alone.x_adv, rtol=0, atol=1e-5)


def test_no_weaker_than_each_source_on_a_held_out_network():
    data = load_data("mnist5k")
    batch, threat = data.batch(data.panel(100)), ThreatModel("linf", 0.2)
    target = load(ModelName.parse("conv-small"))
    sources = tuple(load(ModelName.parse(name)) for name in ("fc500-150-10", "lenet"))
    attacks = [*(Transfer(source=source) for source in sources), EnsembleTransfer(sources=sources)]
    rates = [float(a.run(target, batch, threat, Randomness(0)).success.float().mean()) for a in attacks]
    assert rates[2] > max(rates[:2]) + 0.1


def test_the_target_is_never_asked():
    target = mlp()
    target.network = Counting(target.network)
    batch = labelled(target, images(20))
    target.network.forward_samples = 0
    sources = (mlp(seed=9), mlp(seed=10))
    EnsembleTransfer(sources=sources).run(target, batch, THREAT, Randomness(0))
    assert target.network.forward_samples == 2 * len(batch)


def test_mismatches_are_refused():
    with pytest.raises(UserError, match="two sources"):
        EnsembleTransfer(sources=(mlp(),))
    with pytest.raises(UserError, match="classes or box"):
        EnsembleTransfer(sources=(mlp(), mlp(classes=5)))
