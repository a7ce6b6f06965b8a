"""Defences at the input: composed, declared to the adversary, named, and never a free lunch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.pgd import PGD
from bench.catalog import load as load_catalog
from bench.naming import identity, read_defense, refusal, trained_name
from defenses.bit_depth import BitDepth
from defenses.inputs import StraightThrough, defended
from defenses.zoo import ModelName, load
from models.architecture import MODELS
from models.base import Batch
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


def panel(n: int) -> Batch:
    data = load_data("mnist5k")
    return data.batch(data.panel(None)[:n])


def test_a_name_with_fronts_reads_back_as_itself_and_shares_its_weights() -> None:
    name = ModelName.parse("lenet+adversarial-pgd+bit-depth(bits=3)+bit-depth")
    assert (name.trained, name.inputs) == ("lenet+adversarial-pgd", ("bit-depth(bits=3)", "bit-depth"))
    assert ModelName.parse(str(name)) == name
    assert str(ModelName.parse("lenet+none+bit-depth(bits=1)")) == "lenet+bit-depth"


@pytest.mark.parametrize("text", ["lenet+bit-depth+polytope", "lenet+none+interval", "lenet(bits=1)"])
def test_training_comes_before_what_stands_at_the_input(text: str) -> None:
    with pytest.raises(UserError):
        ModelName.parse(text)


def test_a_defended_model_is_its_network_behind_the_front() -> None:
    batch, plain, wrapped = panel(8), load(ModelName.parse("lenet")), load(ModelName.parse("lenet+bit-depth"))
    assert torch.equal(wrapped.logits(batch.x), plain.logits(batch.x.round()))
    assert not wrapped.stochastic
    assert wrapped.surrogate is not None


def test_fronts_compose_with_the_last_one_outermost() -> None:
    x = torch.full((1, 1, 28, 28), 0.4)
    both = load(ModelName.parse("lenet+bit-depth(bits=1)+bit-depth(bits=2)"))
    plain = load(ModelName.parse("lenet"))
    # 0.4 becomes 1/3 at two bits, and 0 at one.
    assert torch.equal(both.logits(x), plain.logits(torch.zeros_like(x)))
    other = load(ModelName.parse("lenet+bit-depth(bits=2)"))
    assert torch.allclose(other.logits(x), plain.logits(torch.full_like(x, 1 / 3)), atol=1e-4)


def test_straight_through_is_the_front_forward_and_the_identity_backward() -> None:
    front = BitDepth(bits=1).front(MODELS["lenet"])
    x = torch.rand(3, 1, 4, 4, requires_grad=True)
    y = StraightThrough(front)(x)
    assert torch.allclose(y, x.round(), atol=1e-6)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_rounding_stops_the_unaware_and_not_the_aware() -> None:
    """The quantised net's own gradient is zero: hidden, PGD finds nothing; declared, it finds nearly all."""
    batch, threat = panel(40), ThreatModel("linf", 0.3)
    model = load(ModelName.parse("lenet+bit-depth(bits=3)"))
    aware = PGD(steps=20, restarts=1).run(model, batch, threat, Randomness(0)).success.float().mean()
    model.surrogate = None
    unaware = PGD(steps=20, restarts=1).run(model, batch, threat, Randomness(0)).success.float().mean()
    assert unaware <= 0.1
    assert aware >= 0.9


def test_the_catalog_reads_the_same_names() -> None:
    catalog = load_catalog()
    assert read_defense("none+bit-depth(bits=1)", catalog) == "bit-depth"
    assert trained_name("lenet+polytope+bit-depth(bits=2)", catalog) == "lenet+polytope"
    assert refusal("lenet", "polytope+bit-depth", catalog) == refusal("lenet", "polytope", catalog)
    assert refusal("lenet", "none+bit-depth", catalog) is None
    with pytest.raises(UserError, match="polytope trains the network: it comes before bit-depth"):
        read_defense("bit-depth+polytope", catalog)
    successive = "interval(eps=0.3)+small-boxes+jpeg"
    assert read_defense(successive, catalog) == successive
    assert trained_name(f"conv-small+{successive}", catalog) == "conv-small+interval(eps=0.3)+small-boxes"
    assert ModelName.parse(f"conv-small+{successive}").trained == "conv-small+interval(eps=0.3)+small-boxes"
    hashes = [
        identity(name, catalog, lambda trained: f"hash of {trained}") for name in ("lenet", "lenet+bit-depth")
    ]
    assert hashes == ["hash of lenet", 'hash of lenet+bit-depth{"bits": 1}']
    # An ensemble whose other members are trained again is another network.
    together = "lenet+ensemble(of=conv-small & lenet+mixup)"
    found = [
        identity(together, catalog, {"lenet": "a", "conv-small": "b", "lenet+mixup": last}.get)
        for last in "cd"
    ]
    assert [name.split("}")[1] for name in found] == ["+b+c", "+b+d"]


def test_a_front_behind_a_front_keeps_the_surrogate() -> None:
    plain = load(ModelName.parse("lenet"))
    hidden = nn.Identity()
    once = defended(plain, BitDepth(), MODELS["lenet"], "once")
    twice = defended(once, BitDepth(bits=8), MODELS["lenet"], "twice")
    x = panel(2).x.requires_grad_(True)
    twice.differentiable_logits(hidden(x)).sum().backward()
    assert bool((x.grad != 0).any())
