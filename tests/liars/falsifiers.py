"""Liars about their gradients: each decides as its honest network does, and hides why."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Function(nn.Module):
    """A whole network inside one function of autograd, whose gradient points the other way."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        network = self.network

        class Reversed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return network(x)

            @staticmethod
            def backward(ctx, gradient):
                with torch.enable_grad():
                    z = ctx.saved_tensors[0].detach().requires_grad_(True)
                    return -torch.autograd.grad(network(z), z, gradient)[0]

        return Reversed.apply(x)


class Noisy(torch.autograd.Function):
    """The identity, whose gradient is buried in noise."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 30 * gradient.std() * torch.randn_like(gradient)


class Calling(nn.Module):
    """What `call` makes of a network and its input."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.network, x)


def half_detached(network: nn.Module, x: Tensor) -> Tensor:
    kept = torch.arange(x.shape[-1], device=x.device) % 2 == 0
    return network(torch.where(kept, x, x.detach()))


def forgetful(network: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, torch.zeros_like):
        return network(x)


def saturated(network: nn.Module, x: Tensor) -> Tensor:
    return (100 * network(x)).softmax(1).clamp(min=1e-20).log()


def looked_through(network: nn.Module, x: Tensor) -> Tensor:
    logits = network(x)
    return logits.roll(1, 1) if torch._C._len_torch_function_stack() else logits


def falsifiers(network: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """A builder for each, around one network."""
    calls: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
        "half of the gradient": half_detached,
        "forgotten activations": forgetful,
        "saturated log-probabilities": saturated,
        "noise in the gradient": lambda inner, x: inner(Noisy.apply(x)),
        "one towering logit": lambda inner, x: inner(x).exp(),
        "asks who looks": looked_through,
    }
    built = {name: lambda call=call: Calling(network, call) for name, call in calls.items()}
    return {"a function of its own": lambda: Function(network), **built}
