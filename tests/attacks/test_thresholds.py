"""Comparisons: values stay bit for bit, derivatives are averaged over windows, and codes of bits fall."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.smoothed import Reach, Smoothed
from attacks.strongest import Strongest
from attacks.withheld import opened
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.threat import ThreatModel

LEVELS = torch.tensor([0.25, 0.5, 0.75])

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: (x > 0.5).float(),
    "to": lambda x: (x >= 0.5).to(x.dtype),
    "type_as": lambda x: torch.lt(x, 0.5).type_as(x),
    "reflected": lambda x: (x > 0.5).double().float(),
    "not": lambda x: (~(x > 0.5)).float(),
    "logical not": lambda x: torch.logical_not(x <= 0.5).float(),
    "both": lambda x: ((x > 0.25) & (x < 0.75)).float(),
    "either": lambda x: ((x < 0.25) | (x >= 0.75)).float(),
    "product": lambda x: (x > 0.5) * x,
    "product from the left": lambda x: x * (x > 0.5),
    "where": lambda x: torch.where(x > 0.5, 2.0 * x, -x),
    "where of numbers": lambda x: torch.where(x > 0.5, 1.0, 0.0),
    "method where": lambda x: x.where(x > 0.5, torch.zeros(())),
    "fill": lambda x: x.masked_fill(x < 0.5, -3.0),
    "infinite fill": lambda x: functional.softmax(x.masked_fill(x < 0.5, -torch.inf), 1).nan_to_num(0.1),
    "thermometer": lambda x: (x[..., None] > LEVELS).flatten(1).float().unflatten(1, (-1, 3)).sum(2),
    "whole numbers": lambda x: (x > 0.5).long().float(),
    "no numbers": lambda x: x + float((x > 0.5).all()),
    "floor division": lambda x: (8 * x) // 3,
    "rounded division": lambda x: torch.div(8 * x, 3, rounding_mode="floor"),
    "heaviside": lambda x: torch.heaviside(x - 0.5, torch.tensor(0.5)),
    "clamp": lambda x: x.clamp(0.25, 0.75),
    "remainder": lambda x: x % 0.3,
}


# More than one comparison of one entry, or none that becomes a number.
SEVERAL = ("infinite fill", "thermometer", "whole numbers", "no numbers", "both", "either")


def points() -> Tensor:
    """Points (7, 6) at random, on levels, a hair beside them, and infinite."""
    x = torch.rand(7, 6, generator=torch.Generator().manual_seed(0))
    x[0] = torch.tensor([0.25, 0.5, 0.75, 0.0, 1.0, 0.5])
    x[1] = torch.nextafter(x[0], torch.full((6,), torch.inf))
    x[2] = torch.nextafter(x[0], torch.full((6,), -torch.inf))
    return x


def reaches(form: Callable[[Tensor], Tensor], x: Tensor, spread: float = 0.3) -> list[Tensor]:
    noise = torch.randn(9, *x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), Reach(9, len(x)) as measured:
        form((x + spread * noise).flatten(0, 1))
    return measured.reaches


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("width", [0.0, 0.3, 1.0])
def test_values_are_the_networks_own_bit_for_bit(form: Callable[[Tensor], Tensor], width: float) -> None:
    x, found = points(), reaches(form, points())
    out = opened(form, x.clone().requires_grad_(True), lambda: Smoothed(found, width), False)
    assert out is not None
    assert torch.equal(out.detach(), form(x))


@pytest.mark.parametrize("name", [name for name in FORMS if name not in SEVERAL])
def test_derivatives_are_differences_over_the_window(name: str) -> None:
    """Of a form that is one comparison of one entry."""
    form = FORMS[name]
    x = points()[3:].requires_grad_(True)
    found = reaches(form, x.detach())
    assert len(found) == 1
    inner = {"floor division": 8.0, "rounded division": 8.0}.get(name, 1.0)
    half = found[0] / inner
    with Smoothed(found, 1.0):
        form(x).sum().backward()
    with torch.no_grad():
        if "product" in name or name == "where" or name in ("method where", "fill"):
            before, after = {
                "where": (2 * x, -x), "method where": (x, 0 * x), "fill": (x, 0 * x - 3.0),
            }.get(name, (x, 0 * x))  # fmt: skip
            step = ((x + half > 0.5).float() - (x - half > 0.5).float()) / (2 * half)
            own = torch.where(x > 0.5, {"where": 2.0}.get(name, 1.0), {"where": -1.0}.get(name, 0.0))
            expected = own + (before - after) * step
        else:
            expected = (form(x + half) - form(x - half)) / (2 * half)
    assert x.grad is not None
    assert torch.allclose(x.grad, expected, atol=1e-4)


def test_a_bool_in_a_box_of_several_levels_sees_those_within_its_reach() -> None:
    x = torch.tensor([[0.45]]).requires_grad_(True)
    differences = [torch.full((1, 1, 3), 0.1)]
    with Smoothed(differences, 1.0):
        ((x[..., None] > LEVELS).float() * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert float(x.grad) == pytest.approx(10.0 / 0.2)


class Bits(nn.Module):
    """Two classes by a weighted count of which entries are above which levels: separable by entries."""

    def __init__(self, entries: int, levels: int, form: str) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.levels, self.form = (torch.arange(levels) + 0.5) / levels, form
        self.weight = nn.Parameter(torch.randn(entries, levels, generator=draw))

    def codes(self, x: Tensor) -> Tensor:
        above = x.flatten(1)[..., None] > self.levels.to(x)
        if self.form == "where":
            return torch.where(above, 1.0, 0.0).to(x)
        return above.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        score = (self.codes(x) * self.weight).sum((1, 2))
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize("form", ["to", "where"])
def test_thermometer_codes_are_broken_wherever_they_can_be(form: str) -> None:
    """Entries are free of each other in linf, so that the least score is a sum of least parts."""
    eps, network = 0.06, Bits(64, 8, form)
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    model = Classifier(network, num_classes=2, name="bits")
    y = network(x).argmax(1)
    tried = torch.stack([(x + move).clamp(0, 1) for move in torch.linspace(-eps, eps, 241)])
    parts = torch.stack([(network.codes(one) * network.weight).sum(2) for one in tried])
    least = torch.where(y == 0, parts.amin(0).sum(1), -parts.amax(0).sum(1))
    breakable = least < -1e-4
    assert 20 < int(breakable.sum()) < 60
    found = Strongest().run(model, Batch(x, y, torch.arange(60)), ThreatModel("linf", eps), Randomness(0))
    assert not bool((found.success & (least > 1e-4)).any())
    assert int((breakable & ~found.success).sum()) == 0
    blind = [stage for stage in found.won_by if stage in ("square", "flips", "pace", "blocks")]
    assert len(blind) < 0.2 * int(breakable.sum()), blind
