"""Networks that end in a log-softmax: the same margins, proved or broken, and nothing else left out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.pgd import PGD
from bench import audit
from certify.base import CERTIFIERS
from certify.graph import trace
from models.base import Batch, Classifier
from models.discover import import_modules
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import images, mlp

import_modules("certify")
THREAT = ThreatModel("linf", 0.03)


class Ended(nn.Module):
    """A network with a function of its logits."""

    def __init__(self, network: nn.Module, function) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.network(x))


class Tilted(nn.LogSoftmax):
    """Another function by an old name."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.arange(1.0, 5.0)


ENDINGS = {
    "layer": lambda network: nn.Sequential(network, nn.LogSoftmax(1)),
    "layer from the end": lambda network: nn.Sequential(network, nn.LogSoftmax(dim=-1)),
    "function": lambda network: Ended(network, lambda z: F.log_softmax(z, 1)),
    "function by name": lambda network: Ended(network, lambda z: F.log_softmax(z, dim=-1)),
    "torch's own": lambda network: Ended(network, lambda z: torch.log_softmax(z, dim=1)),
    "method": lambda network: Ended(network, lambda z: z.log_softmax(-1)),
}


def judged(network: nn.Module) -> Classifier:
    return Classifier(network, num_classes=4).eval()


def any_labels() -> Batch:
    """Images with labels of all kinds, most of them wrong."""
    return Batch.of(images(24), torch.arange(24) % 4)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("certifier", ["ibp", "crown", "alpha-crown", "lp", "best", "exact"])
def test_margins_are_those_of_the_logits(ending: str, certifier: str) -> None:
    plain, batch = mlp().network, any_labels()
    first, second = (
        CERTIFIERS[certifier]().run(judged(network), batch, THREAT, Randomness(0))
        for network in (plain, ENDINGS[ending](plain))
    )
    assert torch.allclose(first.lower, second.lower, atol=1e-9)
    assert torch.equal(first.certified, second.certified)
    assert 0 < int(first.certified.sum()) < 12
    if certifier == "exact":
        assert torch.equal(first.broken, second.broken)
        assert bool((first.broken | first.certified).all())


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(mlp().network, nn.LogSoftmax(1), nn.Linear(4, 4)),
        Ended(mlp().network, lambda z: z.log_softmax(1) + z),
        nn.Sequential(mlp().network, Tilted(1)),
        Ended(mlp().network, lambda z: 2 * z.log_softmax(1)),
        Ended(mlp().network, lambda z: F.log_softmax(z, 1, dtype=torch.float64)),
        nn.Sequential(mlp().network, nn.LogSoftmax(0)),
        nn.Sequential(mlp().network, nn.LogSoftmax(1), nn.LogSoftmax(0)),
    ],
)
def test_no_other_log_softmax_is_left_out(network: nn.Module) -> None:
    x, exact = any_labels().x.double(), copy.deepcopy(network).double().eval()
    try:
        graph = trace(exact, margins=True)
    except NotApplicable:
        return
    assert not graph.shifted
    assert torch.allclose(graph.values(x)[-1], exact(x), atol=1e-9)


def test_what_asks_for_sizes_gets_no_logits() -> None:
    """A property may speak of the outputs themselves."""
    network, x = ENDINGS["layer"](mlp().network).double(), any_labels().x.double()
    graph = trace(network)
    assert not graph.shifted
    assert torch.allclose(graph.values(x)[-1], network(x), atol=1e-9)


def test_logits_whose_digits_are_lost_are_refused() -> None:
    plain = mlp()
    with torch.no_grad():
        plain.network[-1].bias += 1e4
    with pytest.raises(NotApplicable, match="loses digits of its logits"):
        CERTIFIERS["ibp"]().run(judged(ENDINGS["layer"](plain.network)), any_labels(), THREAT, Randomness(0))


@pytest.mark.parametrize("ending", [nn.Softmax(1), nn.Softmax(-1)])
def test_probabilities_are_named_wherever_they_are_judged(ending: nn.Module) -> None:
    network = nn.Sequential(mlp().network, ending)
    batch = any_labels()
    for judge in (PGD(), CERTIFIERS["crown"](), CERTIFIERS["exact"]()):
        with pytest.raises(UserError, match=r"returned probabilities .*remove its softmax"):
            judge.run(judged(network), batch, THREAT, Randomness(0))
    assert "probabilities" in audit(network, batch.x[:4], batch.y[:4], eps=0.03).flags
