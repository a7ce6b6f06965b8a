"""Logits that hide by how much: the scores that they were computed from are found, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.access import GradientAccess
from attacks.insight import Insight
from attacks.losses import against, margin_loss
from attacks.scores import Recorded, Scored, place_of
from attacks.smoothed import Smoothed
from models.base import Classifier

CLASSES = 5
BENDING: dict[str, Callable[[Tensor], Tensor]] = {
    "power": lambda z: z**9,
    "probabilities": lambda z: (30 * z).softmax(1),
    "clipped log-probabilities": lambda z: (20 * z).softmax(1).clamp(min=1e-7).log(),
    "saturated": lambda z: (3 * z).tanh(),
    "labels": lambda z: functional.one_hot(z.argmax(1), CLASSES).to(z),
    "lists": lambda z: torch.tensor(z.tolist(), dtype=z.dtype),
}
HONEST: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda z: z,
    "scale": lambda z: 50 * z - 3,
    "log-softmax": lambda z: z.log_softmax(1),
    "one decimal": lambda z: z.round(decimals=1),
    "another order": lambda z: z + torch.sin(40 * z).roll(1, 1),
}


class Tailed(nn.Module):
    """A linear layer with a function behind it."""

    def __init__(self, tail: Callable[[Tensor], Tensor], classes: int = CLASSES):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.tail = nn.Linear(8, classes).double(), tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.layer(x))


class Mean(nn.Module):
    """The mean of probabilities of a network and a faint other one: neither's scores say all."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Tailed(lambda z: z)
        self.second = nn.Linear(8, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        return (9 * self.first(x)).softmax(1) + 1e-9 * self.second(x)


def inputs(n: int = 6) -> Tensor:
    return torch.rand(n, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def asked(network: nn.Module, classes: int = CLASSES) -> Insight:
    """What was learned of a network that was asked for one gradient."""
    insight = Insight(Classifier(network, num_classes=classes))
    insight.gradient(inputs(), lambda logits: logits[:, 0], lambda: Smoothed(None, 0.0))
    return insight


@pytest.mark.parametrize("name", BENDING)
def test_scores_stand_for_logits_that_hide_them(name: str) -> None:
    network = Tailed(BENDING[name])
    torch.testing.assert_close(asked(network).logits(inputs()), network.layer(inputs()).detach())


@pytest.mark.parametrize("name", HONEST)
def test_logits_that_hide_nothing_stay_as_they_are(name: str) -> None:
    network = Tailed(HONEST[name])
    assert torch.equal(asked(network).logits(inputs()), network(inputs()).detach())


def test_scores_of_a_part_are_not_taken_for_the_whole() -> None:
    network = Mean()
    assert torch.equal(asked(network).logits(inputs()), network(inputs()).detach())


def test_two_classes_have_too_few_pairs_to_tell() -> None:
    network = Tailed(lambda z: z.tanh() ** 3, classes=2)
    assert torch.equal(asked(network, 2).logits(inputs(4)), network(inputs(4)).detach())


def test_where_scores_decide_otherwise_the_logits_stand() -> None:
    """A clip that makes two classes equal is a tie, whatever the scores behind it say."""
    scores = torch.tensor([[3.0, 1.0, -2.0], [3.0, 2.5, -2.0]])
    call = Scored(lambda x: x.clamp(-2, 2) + 0.0, 3, 2)
    judged = call.judged(call(scores + 0.0))
    assert judged.tolist() == [[2.0, 1.0, -2.0], [2.0, 2.0, -2.0]]


def test_a_place_is_counted_from_the_last_result() -> None:
    z = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with Recorded(z.shape) as seen:
        logits = (z + 0.0).pow(3).tanh()
    assert [one.shape for one in seen.found] == [z.shape] * 3
    assert place_of(seen.found, logits, withheld=False) == 3
    assert place_of(seen.found[2:], logits, withheld=False) is None
    assert place_of(seen.found[2:], logits, withheld=True) == 1


def test_a_saturated_softmax_has_the_gradient_of_its_scores() -> None:
    network = Tailed(lambda z: (1e4 * z).softmax(1))
    access = GradientAccess(Classifier(network, num_classes=CLASSES), 6)
    y = network.layer(inputs()).argmax(1)
    logits, gradient = access.smoothed_gradient(inputs(), None, against(margin_loss, y), None, 0.0)
    x = inputs().requires_grad_(True)
    (expected,) = torch.autograd.grad(margin_loss(network.layer(x), y).sum(), x)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(logits, network.layer(x).detach())
