"""Ensemble adversarial training: by hand on linear sources, who is a source, and who cannot be one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import defenses.static
from defenses import ensemble_adversarial
from defenses.ensemble_adversarial import EnsembleAdversarial
from defenses.static import static_network
from defenses.zoo import ModelName, load, make
from models.architecture import MODELS
from models.base import Batch
from models.checkpoint import SHIPPED
from models.data import load_data
from models.errors import UserError
from models.naming import read_names
from models.randomness import Randomness


def linear(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """Two linear networks in place of trained ones."""
    known = {"fc500-150-10": linear(1), "lenet": linear(2)}
    monkeypatch.setattr(ensemble_adversarial, "static_network", lambda name, device: known[name])
    return known


def batch(first: int = 0) -> Batch:
    x = 0.3 + 0.4 * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Batch(x, torch.arange(6) % 3, torch.arange(first, first + 6))


def by_hand(net: nn.Module, source: nn.Sequential, some: Batch, eps: float, alpha: float) -> float:
    """A linear source's gradient in x is W^T (softmax(z) - e_predicted)."""
    z = source(some.x).detach()
    residual = z.softmax(1) - functional.one_hot(z.argmax(1), 3)
    moved = some.x + eps * (residual @ source[1].weight.detach()).sign().reshape(some.x.shape)
    clean, adversarial = (functional.cross_entropy(net(x), some.y) for x in (some.x, moved))
    return float((alpha * clean + (1 - alpha) * adversarial).detach())


def test_every_batch_has_one_source_and_all_take_their_turn(sources: dict[str, nn.Module]) -> None:
    net = linear(0)
    defense = EnsembleAdversarial(eps=0.1, alpha=0.3, sources="fc500-150-10&lenet")
    everyone = [*sources.values(), net]
    expected = [by_hand(net, one, batch(), 0.1, 0.3) for one in everyone]
    assert len({round(value, 6) for value in expected}) == 3
    turns = []
    for first in range(0, 1800, 6):
        found = float(defense.loss(net, batch(first), 1.0, Randomness(0)).detach())
        (turn,) = [i for i, value in enumerate(expected) if found == pytest.approx(value, rel=1e-9)]
        turns.append(turn)
    counts = torch.bincount(torch.tensor(turns), minlength=3)
    # 300 draws of a third: five deviations are 41.
    assert bool((counts - 100).abs().max() <= 41)


def test_the_static_networks_do_not_change_and_own_examples_follow_the_network(
    sources: dict[str, nn.Module],
) -> None:
    net, defense = linear(0), EnsembleAdversarial(eps=0.1, sources="fc500-150-10&lenet")
    before = [{k: v.clone() for k, v in one.state_dict().items()} for one in sources.values()]
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for first in range(0, 60, 6):
        loss = defense.loss(net, batch(first), 1.0, Randomness(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for one, state in zip(sources.values(), before, strict=True):
        assert all(torch.equal(one.state_dict()[key], value) for key, value in state.items())
        assert all(parameter.grad is None for parameter in one.parameters())


def test_a_shipped_source_is_the_zoos_own_network() -> None:
    data = load_data("mnist5k")
    x = data.batch(data.panel(5)).x
    for name in ("lenet", "conv-small+interval(batch_norm=True,epochs=120,eps=0.3,overshoot=1.1)"):
        network = static_network(name, torch.device("cpu"))
        assert torch.allclose(network(x), load(ModelName.parse(name)).logits(x), atol=1e-5)
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_names_are_read_however_they_are_written() -> None:
    assert read_names(" lenet & conv-small+interval(eps=0.3)&lenet") == (
        "lenet",
        "conv-small+interval(eps=0.3)",
    )
    _, defense = ModelName.parse("conv-small+ensemble-adversarial(sources=lenet&maxout,eps=0.2)").parts()
    assert defense.parameters()["sources"] == "lenet&maxout"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conv-small+ensemble-adversarial(sources=lenet)", "two trained networks"),
        ("conv-small+ensemble-adversarial(sources=lenet&lenet)", "two trained networks"),
        ("conv-small+ensemble-adversarial(sources=lenet&lenett)", "did you mean lenet"),
        ("conv-small+ensemble-adversarial(sources=lenet&linear-3-7)", "judges mnist-3-7"),
        ("linear-3-7+ensemble-adversarial", "is for mnist-3-7"),
        ("conv-small+ensemble-adversarial(eps=2)", "images lie in"),
    ],
)
def test_sources_that_cannot_be_are_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelName.parse(text).parts()


def test_a_source_without_weights_is_named_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def shipped_without(name: str, folder: Path = SHIPPED) -> object:
        return None if name == "lenet+trades" else object()

    monkeypatch.setattr(defenses.static, "read_card", shipped_without)
    monkeypatch.setattr("defenses.zoo.training_data", lambda *_: pytest.fail("data was read"))
    name = ModelName.parse("conv-small+ensemble-adversarial(sources=lenet&lenet+trades)")
    with pytest.raises(UserError, match=r"bench train 'lenet\+trades'"):
        next(make(name, None, folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_its_recipe_is_there_where_its_sources_are() -> None:
    assert EnsembleAdversarial().recipe(MODELS["conv-small"]).epochs == 20


def test_a_gradient_that_hides_does_not_stop_the_static_examples(sources: dict[str, nn.Module]) -> None:
    """The shortcut: own single steps do nothing to a flat network, the others' still reach it."""

    class Masked(nn.Module):
        """A linear network whose input gradient is zero."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = linear(0)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.detach()) + 0 * x.sum()

    net, defense = Masked(), EnsembleAdversarial(eps=0.2, alpha=0.0, sources="fc500-150-10&lenet")
    clean = float(functional.cross_entropy(net(batch().x), batch().y).detach())
    values = [float(defense.loss(net, batch(i), 1.0, Randomness(0)).detach()) for i in range(0, 120, 6)]
    masked = [value for value in values if value == pytest.approx(clean, rel=1e-9)]
    assert 0 < len(masked) < len(values)
