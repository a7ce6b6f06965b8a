"""Gradients that lie: what the network makes of its values is believed, not what it says of its slopes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attacks.access import GradientAccess
from attacks.chains import Course, Search
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.threat import ThreatModel


def falsified(backward: Callable[[Tensor], Tensor]) -> type[torch.autograd.Function]:
    class False_(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return backward(gradient)

    return False_


REVERSED = falsified(lambda gradient: -gradient)
KEPT = falsified(lambda gradient: torch.randn_like(gradient)).apply


def hooked(x: Tensor) -> Tensor:
    y = 1.0 * x
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient.flip(1))
    return y


def unwatched(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return 1.0 * x


def rooted(x: Tensor) -> Tensor:
    """The identity, by way of a square root whose slope at 0 is infinite."""
    return x.clamp(min=0).sqrt().square() - (-x).clamp(min=0).sqrt().square()


def descended(x: Tensor) -> Tensor:
    z = nn.Parameter(x.detach().clone())
    step = torch.optim.SGD([z], lr=1e-4)
    with torch.enable_grad():
        z.square().sum().backward()
    step.step()
    return z.detach()


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "reversed": lambda x: REVERSED.apply(x),
    "random, by a kept name": lambda x: KEPT(x),
    "hook": hooked,
    "inference mode": unwatched,
    "infinite slope": rooted,
    "asks whether gradients are on": lambda x: -x if torch.is_grad_enabled() else x,
    "asks for the leaf": lambda x: -x if x.requires_grad else x,
    "an optimiser of its own": descended,
    "numpy": lambda x: torch.from_numpy(x.detach().numpy().copy()),
}


class Masked(nn.Module):
    def __init__(self, network: nn.Module, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.mask = network, mask

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.mask(x))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).eval().requires_grad_(False)


def asked(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    view = GradientAccess(Classifier(model, num_classes=4), len(x))
    reaches = [torch.zeros(0)] * 9
    return view.smoothed_gradient(x, torch.arange(len(x)), lambda z: z[:, 0], reaches, 1.0)


@pytest.mark.parametrize("name", MASKS)
def test_a_lie_about_the_gradient_is_seen_through(name: str) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).clamp(min=0)
    plain, masked = network(), Masked(network(), MASKS[name])
    logits, gradient = asked(masked, x)
    truth, slope = asked(plain, x)
    torch.testing.assert_close(logits, truth, rtol=1e-2, atol=1e-3)
    # Where the root's slope is infinite there is none to believe.
    there = x > 0 if name == "infinite slope" else torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(gradient[there], slope[there], rtol=0.05, atol=1e-3)


def test_what_modules_do_to_gradients_is_set_aside_and_put_back() -> None:
    plain, masked, x = network(), network(), torch.rand(5, 6)
    handle = masked[1].register_full_backward_hook(lambda _module, given, _received: tuple(-g for g in given))
    torch.testing.assert_close(asked(masked, x)[1], asked(plain, x)[1])
    assert len(masked[1]._backward_hooks) == 1
    handle.remove()


def test_an_honest_function_of_whole_rows_keeps_its_own_derivative() -> None:
    class Mixed(torch.autograd.Function):
        """x -> x A, whose derivative towards each entry is not the entry's own."""

        @staticmethod
        def forward(ctx, x):
            return x.flip(1) * torch.arange(1.0, 7)

        @staticmethod
        def backward(ctx, gradient):
            return (gradient * torch.arange(1.0, 7)).flip(1)

    x = torch.rand(5, 6)
    honest = Masked(network(), lambda z: z.flip(1) * torch.arange(1.0, 7))
    torch.testing.assert_close(asked(Masked(network(), Mixed.apply), x)[1], asked(honest, x)[1])


def test_what_is_flat_leaks_but_only_there() -> None:
    """A clamp out of reach lets a little through where nothing else has a slope; elsewhere slopes stay."""
    model = Masked(network(), lambda x: x.clamp(0.0, 0.5))
    x = torch.full((2, 6), 0.9)
    x[1, 0] = 0.2
    _, gradient = asked(model, x)
    assert bool(gradient[0].any())
    assert not bool(gradient[1, 1:].any())


def test_a_flat_start_is_left_behind() -> None:
    """What is answered from memory next to the clean image is no longer, a step away from it."""
    plain = network()

    class Remembers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            near = ((x - 0.5).abs().amax(1) < 0.05)[:, None].numpy()
            known = torch.tensor([9.0, 0, 0, 0]).expand(len(x), 4)
            return torch.where(torch.from_numpy(near), known, plain(x))

    batch = Batch.of(torch.full((1, 6), 0.5), torch.zeros(1, dtype=torch.int64))
    model = Classifier(Remembers(), num_classes=4)
    search = Search(GradientAccess(model, 1), batch, ThreatModel("linf", 0.4), 1)
    low = search.climb(
        torch.zeros(1, dtype=torch.int64), batch.x, torch.full((1,), -1), Course(steps=10), "gradient"
    )
    corners = torch.cartesian_prod(*[torch.tensor([0.1, 0.9])] * 6)
    logits = plain(corners)
    best = float((logits[:, 0] - logits[:, 1:].amax(1)).min())
    assert float(low) < 0.5 * best + 0.5 * 9.0
    assert float(low) <= best + 0.2 * abs(best) + 0.05


def test_a_random_model_is_asked_again_before_a_hit_is_believed() -> None:
    """On one draw in two it errs: among many looks some look like a majority, and none is one."""

    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flip = torch.rand(len(x), 1) < 0.45
            return torch.where(flip, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])) + 0 * x[:, :1]

    torch.manual_seed(0)
    batch = Batch.of(torch.full((20, 3), 0.5), torch.zeros(20, dtype=torch.int64))
    model = Classifier(Coin(), num_classes=2, stochastic=True)
    search = Search(GradientAccess(model, 20), batch, ThreatModel("linf", 0.1), 8)
    everyone = torch.arange(20)
    for _ in range(3):
        search.climb(everyone, batch.x, torch.full((20,), -1), Course(steps=10), "gradient")
    assert int(search.broken.sum()) <= 12


def test_randomness_of_a_random_direction_is_that_of_the_sample() -> None:
    x, y = torch.rand(4, 6), torch.zeros(4, dtype=torch.int64)
    batch = Batch(x, y, torch.tensor([7, 3, 9, 1]))
    view = GradientAccess(Classifier(network(), num_classes=4), 4)
    search = Search(view, batch, ThreatModel("linf", 0.1), 1)
    whole = search._astray(torch.arange(4), 2)
    assert torch.equal(search._astray(torch.tensor([2]), 2)[0], whole[2])
    assert torch.equal(whole[1], Randomness(0).child("astray", 2).sign(batch.index, (6,))[1])
