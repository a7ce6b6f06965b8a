"""Models that draw once for all that they are asked at once: eight copies in one batch are one draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.access import GradientAccess
from attacks.chains import Search
from attacks.strongest import Strongest
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.threat import ThreatModel


class Signed(nn.Module):
    """Logits (s x_0, 0), where s is 1 or -1: one for the whole batch, or one an image."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        sign = 2.0 * torch.randint(0, 2, (len(x) if self.apart else 1,)) - 1
        first = sign * x[:, 0]
        return torch.stack([first, torch.zeros_like(first)], 1)


def search(network: nn.Module, stochastic: bool = True) -> Search:
    batch = Batch.of(torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64))
    view = GradientAccess(Classifier(network, num_classes=2, stochastic=stochastic), 3)
    return Search(view, batch, ThreatModel("linf", 0.1), 8 if stochastic else 1)


def test_who_draws_once_for_a_batch_is_recognised_and_no_number_is_spent() -> None:
    plain = nn.Linear(2, 2)
    torch.manual_seed(0)
    assert search(Signed(apart=False)).shared
    assert not search(Signed(apart=True)).shared
    assert not search(plain).shared
    assert not search(Signed(apart=False), stochastic=False).shared
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))


def test_gradients_are_averaged_over_draws_of_their_own() -> None:
    """In one batch all eight were the same draw: the mean was 1 or -1."""
    torch.manual_seed(0)
    found = search(Signed(apart=False))
    rows = torch.arange(3)
    slopes = {float(found.look(found.batch.x, rows, rows - rows - 1, None, 0.0)[2][0, 0]) for _ in range(6)}
    assert all(abs(slope) <= 1 for slope in slopes)
    assert any(abs(slope) < 1 for slope in slopes)


class Shifted(nn.Module):
    """A linear classifier that sees one of two halves of the input, the same for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        half = x[:, :2] if bool(torch.randint(0, 2, (1,))) else x[:, 2:]
        score = half.sum(1)
        return torch.stack([score, 0.9 * torch.ones_like(score)], 1)


def test_a_random_model_falls_only_where_every_draw_has_to() -> None:
    """Each half holds 1 and threshold 0.9: both fall at 0.06 an entry, neither at 0.04."""
    batch = Batch.of(torch.full((6, 4), 0.5), torch.zeros(6, dtype=torch.int64))
    model = Classifier(Shifted(), num_classes=2, stochastic=True)
    for eps, broken in ((0.06, 6), (0.04, 0)):
        result = Strongest().run(model, batch, ThreatModel("linf", eps), Randomness(0))
        assert int(result.success.sum()) == broken
