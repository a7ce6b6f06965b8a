"""Nothing depends on lying on the CPU: another device, here an imitated one, gives the same answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.base import ATTACKS
from bench import audit, evaluate
from certify.base import CERTIFIERS
from defenses.base import DEFENSES
from defenses.training import train
from defenses.zoo import ModelName, load
from models.data import Dataset, load_data
from models.randomness import Randomness
from models.recipe import Recipe
from models.threats import threat_named
from tests.attacks import test_contract as attacking
from tests.builders import images, labelled, mlp
from tests.certify import test_contract as certifying
from tests.certify.builders import batch as certified_batch
from tests.certify.builders import model as certified_model
from tests.elsewhere import ELSEWHERE, Elsewhere, another_device

QUICK = ("deepfool", "fgsm", "hopskipjump", "pgd", "square", "strongest", "transfer", "turtle")
CLOCKED = {"exact", "window-split", "parameter-split"}


def _attacked(name: str, device: torch.device | str) -> Any:
    norm = ATTACKS[name].norms[0]
    model, aside = mlp(), labelled(mlp(), images(40, seed=7)).to(device)
    batch, attack = labelled(model, images(10)).to(device), attacking.attack(name)
    for source in getattr(attack, "sources", ()) or [getattr(attack, "source", None)]:
        if isinstance(source, nn.Module):
            source.to(device)
    threat = threat_named(norm, attacking.EPS[norm])
    return attack.run(model.to(device), batch, threat, Randomness(0), aside)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ATTACKS.names()]
)
def test_attacks_find_the_same_points(name: str) -> None:
    here = _attacked(name, "cpu")
    with another_device():
        there = _attacked(name, ELSEWHERE)
        assert isinstance(there.x_adv, Elsewhere)
        x_adv, success = there.x_adv.cpu(), there.success.cpu()
    torch.testing.assert_close(x_adv, here.x_adv, rtol=0, atol=1e-6)
    assert torch.equal(success, here.success)


PROOFS = [name for name in CERTIFIERS.names() if CERTIFIERS[name].confidence == 1.0]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *[(name, "residual") for name in PROOFS],
        ("crown", "curved"), ("crown", "max-pool"), ("exact", "curved"), ("lipschitz", "max-pool"),
    ],
)  # fmt: skip
def test_certificates_prove_the_same_bounds(name: str, family: str) -> None:
    model, data, certifier = certified_model(family), certified_batch(), certifying.certifier(name)
    threat = threat_named(certifier.norms[0], certifying.EPS[certifier.norms[0]] / 10)
    here = certifier.run(model, data, threat, Randomness(0))
    with another_device():
        there = certifier.run(copy.deepcopy(model).to(ELSEWHERE), data.to(ELSEWHERE), threat, Randomness(0))
        assert isinstance(there.lower, Elsewhere)
        lower, certified = there.lower.cpu(), there.certified.cpu()
    assert torch.equal(certified, here.certified)
    if name not in CLOCKED:
        torch.testing.assert_close(lower, here.lower, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["none", "adversarial-pgd", "interval", "polytope", "l1-sparse", "trades"])
def test_networks_are_trained(name: str) -> None:
    """To weights a rounding away: an optimiser's steps there are the CPU's, its reduced precision is not."""
    data = Dataset("tiny", *_tiny(), 3)
    found = []
    for device in ("cpu", ELSEWHERE):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        with another_device():
            run = train(
                network, DEFENSES[name](), Recipe(epochs=2, batch_size=8), data, seed=0, device=device
            )
            losses = [step.loss for step in run]
            assert {part.device.type for part in network.parameters()} == {torch.device(device).type}
        found.append(losses)
    assert found[0] == pytest.approx(found[1], abs=0.02)


def _tiny() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(24) % 3


FRONTS = ("bit-depth", "jpeg", "pca", "random-resize")


def _zoo(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    data = load_data("mnist5k")
    batch = data.batch(data.panel(8))
    return load(ModelName.parse(name)).network, batch.x, batch.y


def _same(question: Callable[[nn.Module], Any], network: nn.Module) -> None:
    here = str(question(network))
    with another_device():
        assert str(question(copy.deepcopy(network).to(ELSEWHERE))) == here


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("rotation", 5), ("corruption", 2)])
def test_the_bracket_is_the_same(norm: str, eps: float) -> None:
    network, x, y = _zoo("conv-small+polytope")
    _same(lambda there: evaluate(there, x, y, norm=norm, eps=eps), network)


@pytest.mark.slow
@pytest.mark.parametrize("front", FRONTS)
def test_defences_at_the_input_are_attacked_as_well(front: str) -> None:
    network, x, y = _zoo(f"conv-small+{front}")
    _same(lambda there: evaluate(there, x, y, eps=0.1, attacks=["fgsm", "pgd"], certificates=[]), network)


@pytest.mark.slow
def test_a_vote_over_noise_is_counted() -> None:
    network, x, y = _zoo("conv-small+gaussian-noise+smoothing(sigma=0.5)")
    votes = ["smoothing(selection=20,samples=100)"]
    _same(
        lambda there: evaluate(there, x[:3], y[:3], norm="l2", eps=0.5, attacks=[], certificates=votes),
        network,
    )


@pytest.mark.slow
def test_an_audit_says_the_same() -> None:
    network, x, y = _zoo("conv-small+bit-depth")
    _same(lambda there: [(rung.name, rung.passed) for rung in audit(there, x, y, eps=0.1).rungs], network)


def test_tensors_of_two_devices_do_not_meet() -> None:
    """What the imitation is for: it refuses what an accelerator would, and lets pass what one would."""
    with another_device():
        there, here = torch.arange(4.0, device=ELSEWHERE), torch.ones(4)
        assert (there * 2 + torch.tensor(1.0)).tolist() == [1.0, 3.0, 5.0, 7.0]
        assert there[torch.tensor([2, 0])].tolist() == [2.0, 0.0]
        refused: list[Callable[[], object]] = [
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.where(there > 1, here, there),
            lambda: here[there.long()],
            lambda: there.numpy(),
            lambda: torch.rand(3, device=ELSEWHERE, generator=torch.Generator()),
            lambda: nn.Linear(4, 2)(there),
            lambda: here.add_(there),
        ]
        for mixed in refused:
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
