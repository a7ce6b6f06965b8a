"""Backward passes that are not the derivative of their forward pass, wherever they are hidden."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attacks.access import GradientAccess
from attacks.evened import TOWERING, evened, unit_of
from attacks.falsified import is_flat, lies
from attacks.pgd import PGD
from models.base import Batch, Classifier
from models.errors import NotApplicable
from models.randomness import Randomness
from models.threat import ThreatModel


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).eval().requires_grad_(False)


def answered(forward: Callable[..., object], backward: Callable[..., object]) -> type:
    class Answered(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            return forward(*args)

        @staticmethod
        def backward(ctx, *gradients):
            return backward(*gradients)

    return Answered


class SetUp(torch.autograd.Function):
    """A function of the newer kind, which keeps what it needs in a place of its own."""

    @staticmethod
    def forward(x):
        return 1.0 * x.reshape(len(x), 3, 2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, gradient):
        return -gradient.reshape(ctx.shape)


def noisy(gradient: Tensor) -> Tensor:
    return gradient + 30 * gradient.std() * torch.randn_like(gradient)


CLONE = {
    "NaN": lambda gradient: gradient * torch.nan,
    "infinity": lambda gradient: gradient * torch.inf,
    "noise": noisy,
    "noise by place": lambda gradient: (
        gradient + 30 * gradient.std() * torch.sin(99.0 * torch.arange(30.0)).reshape(5, 6)[: len(gradient)]
    ),
}
CLONED = {name: answered(torch.clone, backward) for name, backward in CLONE.items()}
WHOLE = {
    "zero": lambda gradient: gradient.new_zeros(len(gradient), 6),
    "random": lambda gradient: torch.randn(len(gradient), 6),
    "NaN": lambda gradient: gradient.new_full((len(gradient), 6), torch.nan),
}
SECOND = answered(lambda scale, x: scale * x, lambda gradient: (None, -gradient))
FLAT = answered(lambda x: x.reshape(len(x), 2, 3).clone(), lambda gradient: -gradient.flatten(1))


SEVERAL = answered(
    lambda x: (x.clone(), len(x), 2 * x.reshape(len(x), 2, 3)),
    lambda gradient, _, other: -gradient - other.flatten(1),
)
HONEST = answered(
    lambda x: (x.clone(), 2 * x.reshape(len(x), 2, 3)), lambda one, other: one + 2 * other.flatten(1)
)


def on_the_graph(register: str) -> Callable[[Tensor], Tensor]:
    def mask(x: Tensor) -> Tensor:
        y = 1.0 * x
        if y.grad_fn is not None:
            getattr(y.grad_fn, register)(lambda *given: tuple(None if g is None else -g for g in given[0]))
        return y

    return mask


class Masked(nn.Module):
    """A network behind a mask, or inside something that calls it."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.inner, x)


def behind(mask: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda inner, x: inner(mask(x))


def forgotten(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, torch.zeros_like):
        return inner(x)


def spied(inner: nn.Module, x: Tensor) -> Tensor:
    return inner(x).roll(1, 1) if torch._C._len_torch_function_stack() else inner(x)


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    **{name: behind(cls.apply) for name, cls in CLONED.items()},
    **{
        f"whole, {name}": lambda inner, x, answer=answer: answered(inner, answer).apply(x)
        for name, answer in WHOLE.items()
    },
    "second argument": behind(lambda x: SECOND.apply(1.0, x)),
    "first of several": behind(lambda x: SEVERAL.apply(x)[0]),
    "last of several": behind(lambda x: 0.5 * SEVERAL.apply(x)[2].flatten(1)),
    "all of several": behind(lambda x: sum(one.flatten(1) for one in SEVERAL.apply(x)[::2]) / 3),
    "honest several": behind(lambda x: sum(one.flatten(1) for one in HONEST.apply(x)) / 3),
    "another shape": behind(lambda x: FLAT.apply(x).flatten(1)),
    "a context of its own": behind(lambda x: SetUp.apply(x).flatten(1)),
    "hook on the graph": behind(on_the_graph("register_hook")),
    "hook before the graph": behind(on_the_graph("register_prehook")),
    "what is kept": forgotten,
    "reentrant checkpoint": lambda inner, x: checkpoint(inner, x, use_reentrant=True),
    "numbers too small": lambda inner, x: inner(x) * 1e-20 * 1e-15 * 1e20 * 1e15,
    "vmap": lambda inner, x: torch.func.vmap(lambda one: inner(one[None])[0])(x),
    "asks who looks": spied,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_the_gradient_is_that_of_the_values_whatever_it_is_said_to_be(name: str) -> None:
    x, rows = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    views = [
        GradientAccess(Classifier(model, num_classes=4), 5)
        for model in (network(), Masked(network(), CALLS[name]))
    ]
    noise = torch.randn(9 * 5, 6, generator=torch.Generator().manual_seed(1))
    found = []
    for view in views:
        # As in an attack: a first look, reaches, then gradients whose windows have closed.
        view.smoothed_gradient(x, rows, lambda z: z[:, 0], None, 0.0)
        _, reaches = view.reach(x.repeat(9, 1) + 0.05 * noise, rows.repeat(9), 9)
        found.append(view.smoothed_gradient(x, rows, lambda z: z[:, 0], reaches, 0.0))
    (truth, slope), (logits, gradient) = found
    torch.testing.assert_close(logits, truth, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(gradient / gradient.norm(), slope / slope.norm(), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", CLONE)
def test_what_answers_otherwise_lies(name: str) -> None:
    assert lies(CLONED[name].apply, torch.rand(5, 6))


@pytest.mark.parametrize("forward", [torch.clone, lambda x: x.flip(1) * torch.arange(1.0, 7), torch.relu])
def test_what_answers_with_its_derivative_does_not_lie(forward: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert not lies(forward, x)
    assert not is_flat(forward, x)


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_differentiated_is_named_to_those_who_differentiate() -> None:
    """torch's own message was a traceback for pgd, and for `evaluate`."""
    model = Classifier(Masked(network(), CALLS["reentrant checkpoint"]), num_classes=4)
    x = torch.rand(5, 6)
    batch = Batch.of(x, model(x).argmax(1))
    with pytest.raises(NotApplicable, match="does not let itself be differentiated"):
        PGD(steps=2).run(model, batch, ThreatModel("linf", 0.1), Randomness(0))


def test_one_logit_that_towers_over_all_is_brought_down_and_decisions_stay() -> None:
    z = 4 * torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[:, 2] += 30
    assert unit_of(z) is None
    unit = unit_of(z.exp())
    assert unit is not None
    flat = evened(z.exp(), unit)
    assert torch.equal(flat.argsort(1), z.argsort(1))
    # Beyond the smallest of all the logarithm is exact: differences are those of what the exponential took.
    torch.testing.assert_close(flat[:, 2] - flat[:, 1], z[:, 2] - z[:, 1], rtol=0.05, atol=0.7)
    assert evened(z, None) is z
    assert unit_of(torch.tensor([[TOWERING, 0.0, 0.0]])) is None
