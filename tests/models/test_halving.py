"""Where memory runs out, batches halve themselves, and the results are those of one batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.base import ATTACKS
from certify.base import CERTIFIERS, Certifier
from models.base import Batch, Classifier
from models.discover import import_modules
from models.errors import UserError
from models.halving import FULL, NoRoom, fitted_size, in_pieces
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import images, labelled, mlp

import_modules("attacks")
import_modules("certify")


def test_pieces_cover_all_samples_and_stay_small_after_the_first_failure() -> None:
    asked = []

    def work(part: slice) -> Tensor:
        asked.append(part.stop - part.start)
        if asked[-1] > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return torch.arange(part.start, part.stop)

    assert torch.cat(in_pieces(work, 10, 8)).tolist() == list(range(10))
    assert asked == [8, 4, 2, 2, 2, 2, 2]
    assert in_pieces(work, 0, 8) == []


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(FULL[0]), RuntimeError(FULL[1])])
def test_one_sample_that_does_not_fit_is_said_in_a_line(error: Exception) -> None:
    def never(part: slice) -> Tensor:
        raise error

    with pytest.raises(UserError, match=r"on one sample \(.+\): free some"):
        in_pieces(never, 4, 4)
    assert issubclass(NoRoom, MemoryError)


def test_other_errors_are_left_alone() -> None:
    def wrong(part: slice) -> Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        in_pieces(wrong, 4, 4)


def test_an_accelerator_takes_more_at_once() -> None:
    assert fitted_size(torch.device("cpu"), 64) == 64
    assert fitted_size(torch.device("meta"), 64) > 64


class Cramped(nn.Module):
    """A network whose memory holds `room` samples at once."""

    def __init__(self, network: nn.Module, room: int) -> None:
        super().__init__()
        self.network, self.room, self.refused = network, room, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            self.refused += 1
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 TiB")
        return self.network(x)


def _cramped(room: int) -> tuple[Classifier, Classifier, Batch]:
    plain = mlp()
    network = Cramped(plain.network, room)
    return plain, Classifier(network, num_classes=4, name="cramped"), labelled(plain, images(21))


@pytest.mark.parametrize("name", ["pgd", "momentum", "deepfool"])
def test_attacks_find_in_halves_what_they_find_at_once(name: str) -> None:
    plain, cramped, batch = _cramped(9)
    threat = ThreatModel(ATTACKS[name].norms[0], None if ATTACKS[name].minimal else 0.1)
    whole = ATTACKS[name]().run(plain, batch, threat, Randomness(0))
    halves = ATTACKS[name]().run(cramped, batch, threat, Randomness(0))
    assert cramped.network.refused > 0
    torch.testing.assert_close(halves.x_adv, whole.x_adv, rtol=0, atol=1e-6)
    assert torch.equal(halves.success, whole.success)


@pytest.mark.parametrize("name", ["ibp", "crown", "alpha-crown"])
def test_certificates_prove_in_halves_what_they_prove_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _, batch = _cramped(9)
    certifier, sizes = CERTIFIERS[name](), []
    whole = certifier.run(plain, batch, ThreatModel("linf", 0.02), Randomness(0))
    bound = type(certifier).bound

    def cramped(self: Certifier, model: Classifier, part: Batch, *rest: object) -> Tensor:
        sizes.append(len(part))
        if len(part) > 9:
            raise torch.OutOfMemoryError(FULL[2])
        return bound(self, model, part, *rest)

    monkeypatch.setattr(type(certifier), "bound", cramped)
    halves = certifier.run(plain, batch, ThreatModel("linf", 0.02), Randomness(0))
    assert sizes == [21, 10, 5, 5, 5, 5, 1]
    torch.testing.assert_close(halves.lower, whole.lower, rtol=0, atol=1e-9)
