"""Memory: networks without state have none, whatever they hold; those that keep their questions are seen."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from attacks.strongest import Strongest
from models.base import Batch, Classifier
from models.memory import asked, by_order, changed, since
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import images, labelled, mlp


class Counter(nn.Module):
    """A network that adds a number to its first logit from its n-th call on."""

    def __init__(self, network: nn.Module, calls: int) -> None:
        super().__init__()
        self.network, self.left = network, calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        z = self.network(x)
        return z if self.left > 0 else z + torch.eye(z.shape[1])[0]


class Centred(nn.Module):
    """A network whose answers depend on the batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x - x.mean(0) + x[:1])


class Locked(nn.Module):
    """A network that holds something that cannot be copied."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.lock = network, threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def judged(network: nn.Module) -> Classifier:
    return Classifier(network, num_classes=4).eval()


def some(n: int = 30) -> Batch:
    return labelled(mlp(), images(n))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0), ("linf", None)])
@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("wrapped", [lambda network: network, Centred, Locked])
def test_what_has_no_state_remembers_nothing(norm: str, eps: float | None, n: int, wrapped) -> None:
    model, batch = judged(wrapped(mlp().network)), some(n)
    first = asked(model, batch)
    assert by_order(model, batch, ThreatModel(norm, eps)) == 0
    assert since(model, batch, first, together=wrapped is Centred) == 0


def test_normalisation_and_dropout_in_eval_mode_remember_nothing() -> None:
    layers = nn.Sequential(nn.BatchNorm2d(1), mlp().network, nn.Dropout(0.5)).train()
    model, batch = Classifier(layers, num_classes=4), some()
    assert by_order(model, batch, ThreatModel("linf", 0.1)) == 0
    assert layers.training


@pytest.mark.parametrize("calls", [2, 3, 4])
def test_an_answer_that_comes_later_is_another(calls: int) -> None:
    model, batch = judged(Counter(mlp().network, calls)), some()
    assert by_order(model, batch, ThreatModel("linf", 0.1)) == pytest.approx(1.0, abs=1e-5)
    assert model.network.left == calls, "only copies were asked"


def test_answers_that_change_over_time_are_seen_afterwards() -> None:
    model, batch = judged(Counter(mlp().network, 3)), some()
    first = asked(model, batch)
    assert since(model, batch, first, together=False) == pytest.approx(1.0, abs=1e-5), "asked backwards"
    assert since(model, batch, first, together=True) == pytest.approx(1.0, abs=1e-5)


def test_no_number_is_compared_with_a_number() -> None:
    first = torch.tensor([[1.0, torch.nan, torch.inf]])
    assert changed(first, first.clone(), 1e-5) == 0
    assert changed(first, torch.tensor([[1.0, 2.0, torch.inf]]), 1e-40) > 0
    assert changed(first[:, :1], first[:, :1] + 1e-6, 1e-5) == 0
    assert changed(first[:0], first[:0], 1e-5) == 0


@pytest.mark.filterwarnings("ignore")
def test_a_trace_whose_weights_are_not_frozen_is_copied_and_attacked() -> None:
    """The weights of a deep copy of a TorchScript module are computed tensors, whose flags cannot be set."""
    net = mlp().requires_grad_(True)
    batch = labelled(net, images(8))
    trace = torch.jit.trace(net, batch.x)
    threat = ThreatModel("linf", 0.1)
    assert by_order(judged(trace), batch, threat) == 0
    for network in (trace, copy.deepcopy(trace)):
        found = Strongest().run(judged(network), batch, threat, Randomness(0))
        assert torch.equal(found.success, Strongest().run(judged(net), batch, threat, Randomness(0)).success)
        assert all(parameter.requires_grad for parameter in network.parameters())
