"""An ensemble is the mean of its members' logits to everyone: users, adversaries and certificates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.pgd import PGD
from certify.crown import Crown
from certify.ibp import IntervalBounds
from defenses.ensemble import Ensemble, MeanLogits
from defenses.static import stored_as
from defenses.zoo import ModelName, load
from models.architecture import MODELS
from models.base import Batch, Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

NAMES = ("conv-small+polytope", "conv-small+interval", "fc500-150-10+polytope")
TOGETHER = f"{NAMES[0]}+ensemble(of={NAMES[1]}&{NAMES[2]})"


def digits(n: int) -> Batch:
    data = load_data("mnist5k")
    return data.batch(data.panel(None)[:n])


def test_the_logits_are_the_mean_of_the_members() -> None:
    batch = digits(20)
    mean = torch.stack([load(ModelName.parse(name)).logits(batch.x) for name in NAMES]).mean(0)
    assert torch.allclose(load(ModelName.parse(TOGETHER)).logits(batch.x), mean, atol=1e-5)


@pytest.mark.parametrize("certificate", [IntervalBounds(), Crown()])
def test_the_least_margin_of_a_mean_is_at_least_the_mean_of_the_least(
    certificate: IntervalBounds | Crown,
) -> None:
    """min over x of a mean >= the mean of the minima; both certificates keep to it, member by member."""
    batch, threat = digits(30), ThreatModel("linf", 0.1)
    alone = [certificate.bound(load(ModelName.parse(name)), batch, threat, Randomness(0)) for name in NAMES]
    together = certificate.bound(load(ModelName.parse(TOGETHER)), batch, threat, Randomness(0))
    assert bool((together >= torch.stack(alone).mean(0) - 1e-6).all())


def test_two_members_that_break_alone_are_certified_together() -> None:
    """Margins 2 + 6 v and 2 - 6 v for a pixel v in [-1/2, 1/2]: each changes sign, their mean is 2."""

    def member(slope: float) -> nn.Module:
        layer = nn.Linear(1, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[slope], [0.0]]))
            layer.bias.copy_(torch.tensor([2.0 - slope / 2, 0.0]))
        return nn.Sequential(nn.Flatten(), layer)

    batch = Batch(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), torch.tensor([0]))
    threat = ThreatModel("linf", 0.5)
    members = [member(6.0), member(-6.0)]
    for alone in members:
        broken = PGD().run(Classifier(alone, num_classes=2), batch, threat, Randomness(0))
        assert bool(broken.success.all())
    together = Classifier(MeanLogits(members), num_classes=2)
    lower = Crown().bound(together, batch, threat, Randomness(0))
    assert lower[0, 1] == pytest.approx(2.0, abs=1e-6)


def test_an_adversary_follows_all_members() -> None:
    model, batch = load(ModelName.parse(TOGETHER)), digits(4)

    def gradient(one: Classifier) -> torch.Tensor:
        x = batch.x.clone().requires_grad_(True)
        return torch.autograd.grad(one.differentiable_logits(x)[:, 3].sum(), x)[0]

    mean = torch.stack([gradient(load(ModelName.parse(name))) for name in NAMES]).mean(0)
    assert torch.allclose(gradient(model), mean, atol=1e-5)


def test_a_surrogate_of_the_first_member_is_the_surrogate_of_its_part() -> None:
    behind = load(ModelName.parse(f"{NAMES[0]}+bit-depth(bits=1)+ensemble(of={NAMES[2]})"))
    x = digits(4).x.requires_grad_(True)
    front = load(ModelName.parse(f"{NAMES[0]}+bit-depth(bits=1)"))
    parts = [front.differentiable_logits(x), load(ModelName.parse(NAMES[2])).logits(x)]
    assert torch.allclose(behind.differentiable_logits(x), torch.stack(parts).mean(0), atol=1e-5)


def test_a_member_without_weights_is_named_with_the_command_that_makes_it() -> None:
    with pytest.raises(UserError, match=r"bench train 'conv-small\+mixup\(alpha=0.3\)'"):
        load(ModelName.parse("conv-small+ensemble(of=conv-small+mixup(alpha=0.3))"))


def test_members_of_another_data_set_are_refused() -> None:
    reason = Ensemble(of="conv-small&lenet-cifar").refuses(MODELS["lenet"])
    assert reason is not None
    assert "lenet-cifar" in reason


@pytest.mark.parametrize("of", ["", " & "])
def test_no_member_is_refused(of: str) -> None:
    with pytest.raises(UserError, match="ensemble"):
        Ensemble(of=of)


def ramped(slope: float) -> nn.Sequential:
    """relu(slope x - 1) in front of one linear layer: chains of this kind share their first two layers."""
    rise = nn.Linear(1, 1)
    with torch.no_grad():
        rise.weight.fill_(slope)
        rise.bias.fill_(-1.0)
    return nn.Sequential(rise, nn.ReLU(), nn.Linear(1, 3))


def test_shared_layers_are_the_networks_own_for_all_members() -> None:
    """The mean of g_k(f_1(x)), f_1 the first two layers of the first member and g_k the rest of each."""
    first, second, third = members = [ramped(slope) for slope in (2.0, 3.0, 4.0)]
    together = Ensemble(shared=2)._together(first, {"b": second, "c": third})
    x = torch.linspace(-1, 2, 13)[:, None]
    mean = torch.stack([member[2:](first[:2](x)) for member in members]).mean(0)
    assert torch.allclose(together(x), mean, atol=1e-6)
    alone = Ensemble()._together(first, {"b": second, "c": third})
    assert not torch.allclose(alone(x), mean, atol=1e-2)


def test_what_cancels_behind_shared_layers_cancels_in_the_bound() -> None:
    """Margins 2 + 6 a and 2 - 6 a for a = relu(2 v - 1): their mean is 2, whatever a may be."""
    members = []
    for sign in (1.0, -1.0):
        member = ramped(2.0)
        with torch.no_grad():
            member[2].weight.copy_(torch.tensor([[6.0 * sign], [0.0], [0.0]]))
            member[2].bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
        members.append(nn.Sequential(nn.Flatten(), *member))
    batch = Batch(torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), torch.tensor([0]))
    lower = {}
    for shared in (0, 3):
        network = Ensemble(shared=shared)._together(members[0], {"other": members[1]})
        model = Classifier(network, num_classes=3)
        lower[shared] = float(Crown().bound(model, batch, ThreatModel("linf", 0.4), Randomness(0))[0, 1])
    assert lower[3] == pytest.approx(2.0, abs=1e-6)
    assert lower[0] < 1.5


def test_members_whose_first_layers_differ_share_none() -> None:
    reason = Ensemble(of="lenet", shared=1).refuses(MODELS["conv-small"])
    assert reason is not None
    assert "'lenet' does not begin with 1 layers" in reason
    assert Ensemble(of="conv-small+polytope", shared=2).refuses(MODELS["conv-small"]) is None
    with pytest.raises(UserError, match="not -1"):
        Ensemble(shared=-1)


def test_layers_behind_a_front_end_are_not_shared() -> None:
    with pytest.raises(UserError, match="leave shared out"):
        load(
            ModelName.parse("conv-small+interval+bit-depth(bits=1)+ensemble(of=conv-small+polytope,shared=2)")
        )


def test_a_member_is_found_however_its_parameters_are_spelled() -> None:
    """In another order, with a default spelled out, or behind "none"."""
    assert stored_as("conv-small+interval(eps=0.1)") == "conv-small+interval"
    assert stored_as("lenet+none") == "lenet"
    spelled = "conv-small+interval(overshoot=1.1, batch_norm=true, eps=0.1, epochs=120)"
    assert stored_as(spelled) == "conv-small+interval(batch_norm=True,epochs=120,overshoot=1.1)"
    x = digits(3).x
    found = load(ModelName.parse(f"conv-small+ensemble(of={spelled})")).logits(x)
    assert torch.equal(
        found, load(ModelName.parse(f"conv-small+ensemble(of={stored_as(spelled)})")).logits(x)
    )
    with pytest.raises(UserError, match="bit-depth"):
        load(ModelName.parse("conv-small+ensemble(of=conv-small+bit-depth)"))
