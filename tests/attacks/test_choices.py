"""Places, votes and levels: values stay bit for bit, and gradients reach what chose them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attacks.smoothed import Reach, Smoothed
from attacks.withheld import Opened

SEEN = torch.rand(30, 6, generator=torch.Generator().manual_seed(2))
NAMES = torch.arange(30) % 4
TABLE = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
SHADES = torch.linspace(1, 0, 16)


def votes(x: Tensor) -> Tensor:
    return sum(functional.one_hot(part.argmax(1), 3) for part in (x[:, :3], x[:, 3:])).float()


def written(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[torch.arange(len(x)), x.argmax(1)] = 2.0
    return out


def scattered(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out.scatter_(1, x.topk(2).indices, 1.0)
    return out


def neighbours(x: Tensor) -> Tensor:
    near = torch.cdist(x, SEEN).topk(3, largest=False).indices
    return functional.one_hot(NAMES[near], 4).sum(1).float()


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "one-hot": lambda x: 9.0 * functional.one_hot(x.argmax(1), 6),
    "maximum's place": lambda x: functional.one_hot(x.max(1).indices, 6).to(x),
    "smallest": lambda x: functional.one_hot(torch.argmin(x, dim=1), 8).double().float(),
    "table": lambda x: TABLE[x.argmax(1)],
    "embedding": lambda x: functional.embedding(x.argmax(1), TABLE),
    "kept dimension": lambda x: functional.one_hot(x.argmax(1, keepdim=True).squeeze(1), 6).float(),
    "best of a sort": lambda x: functional.one_hot(x.argsort(1, descending=True)[:, 0], 6).float(),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, x.topk(2).indices, 1.0),
    "scatter in place": scattered,
    "written": written,
    "votes": votes,
    "neighbours": neighbours,
    "ranks": lambda x: x.argsort(1).argsort(1).float(),
}
LEVELS: dict[str, Callable[[Tensor], Tensor]] = {
    "long": lambda x: (8 * x).long().to(x) / 8,
    "bytes": lambda x: (255 * x).to(torch.uint8).float() / 255,
    "bits": lambda x: ((255 * x).byte() & 0xE0).float() / 255,
    "floor": lambda x: ((255 * x).int() // 32 * 32) / 255,
    "buckets": lambda x: torch.bucketize(x, torch.linspace(0.1, 0.9, 8)).float() / 8,
    "search": lambda x: torch.searchsorted(torch.linspace(0.1, 0.9, 8), x).float() / 8,
    "look-up": lambda x: SHADES[(15.9 * x).long()],
    "colours": lambda x: (functional.one_hot((15.9 * x).long(), 16).float() * SHADES).sum(-1),
}


def points() -> Tensor:
    return torch.rand(7, 6, generator=torch.Generator().manual_seed(0))


def reaches(form: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    noise = torch.randn(9, *x.shape, generator=torch.Generator().manual_seed(1))
    versions = (x + 0.1 * noise).clamp(0, 1).flatten(0, 1)
    with torch.no_grad(), Reach(9, len(x)) as measured:
        form(versions)
    return measured.reaches


@pytest.mark.parametrize("name", [*PLACES, *LEVELS])
@pytest.mark.parametrize("width", [0.0, 1.0])
def test_values_are_the_networks_own_and_gradients_are_there(name: str, width: float) -> None:
    form, x = (PLACES | LEVELS)[name], points().requires_grad_(True)
    masks = name.startswith("scatter")
    with torch.enable_grad(), Opened(False), Smoothed(reaches(form, points()), width, leaky=masks):
        out = form(x)
    assert torch.equal(out, form(x))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    assert bool(gradient.flatten(1).any(1).all())


@pytest.mark.parametrize("name", LEVELS)
def test_levels_follow_their_entries(name: str) -> None:
    """Averaged over a wide window, a code of a colour rises with it; a table of falling shades falls."""
    form, x = LEVELS[name], points().requires_grad_(True)
    with torch.enable_grad(), Opened(False), Smoothed(reaches(form, points()), 1.0):
        out = form(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    sign = -1 if name in ("look-up", "colours") else 1
    inner = (points() > 0.2) & (points() < 0.8)
    assert bool((sign * gradient[inner] > 0.3).all())
    assert bool((sign * gradient[inner] < 3).all())


def test_a_one_hot_code_moves_as_the_softmax_of_its_scores() -> None:
    x = points()
    soft = (x / x.std(1, keepdim=True)).softmax(1)
    with torch.no_grad(), Smoothed(None, 0.0, relaxed=True):
        relaxed = functional.one_hot(x.argmax(1), 6).float()
    torch.testing.assert_close(relaxed, soft)
    z = x.requires_grad_(True)
    with torch.enable_grad(), Smoothed(None, 0.0):
        code = functional.one_hot(z.argmax(1), 6).float()
    (gradient,) = torch.autograd.grad(code[:, 0].sum(), z)
    (expected,) = torch.autograd.grad((z / z.detach().std(1, keepdim=True)).softmax(1)[:, 0].sum(), z)
    torch.testing.assert_close(gradient, expected)


def test_votes_add_up_and_a_table_mixes_its_rows() -> None:
    x = points()
    with torch.no_grad(), Smoothed(None, 0.0, relaxed=True):
        both, mixed = votes(x), TABLE[x.argmax(1)]
    soft = [(part / part.std(1, keepdim=True)).softmax(1) for part in (x[:, :3], x[:, 3:])]
    torch.testing.assert_close(both, soft[0] + soft[1])
    torch.testing.assert_close(mixed, (x / x.std(1, keepdim=True)).softmax(1) @ TABLE)


def test_a_mask_of_several_entries_adds_nothing_to_the_gradient_of_what_it_keeps() -> None:
    x = points().requires_grad_(True)
    with torch.enable_grad(), Opened(False), Smoothed(None, 1.0):
        mask = torch.zeros_like(x).scatter(1, x.detach().abs().topk(2).indices, 1.0)
        (gradient,) = torch.autograd.grad((x * mask).sum(), x)
    assert torch.equal(gradient, mask.detach())
