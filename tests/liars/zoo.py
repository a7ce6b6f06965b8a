"""Models that look more robust than they are, each around one honest network, and three honest ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.data import load_data
from tests.liars.falsifiers import Calling, falsifiers

HONEST = ("conv-small", "conv-small+polytope", "lenet+adversarial-pgd")


def panel(n: int) -> Batch:
    """n images of the embedded set."""
    data = load_data("mnist5k")
    return data.batch(data.panel(None)[:n])


class ZeroGradient(torch.autograd.Function):
    """The identity, whose gradient is said to be zero."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class Between(nn.Module):
    """A network between two functions."""

    def __init__(self, network: nn.Module, before: Callable = lambda x: x, after: Callable = lambda z: z):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)))


class Hidden(nn.Module):
    """The network with a function after its first `depth` layers."""

    def __init__(self, network: nn.Sequential, depth: int, change: Callable):
        super().__init__()
        self.first, self.second, self.change = network[:depth], network[depth:], change

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.change(self.first(x)))


def winners(z: Tensor) -> Tensor:
    """The largest twentieth of the activations, and zero elsewhere (k-winners-take-all, Xiao et al. 2020)."""
    flat = z.flatten(1)
    least = flat.topk(flat.shape[1] // 20, dim=1).values[:, -1:]
    return torch.where(flat >= least, flat, 0.0).reshape(z.shape)


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is said to point the other way."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class TwoFaced(nn.Module):
    """Answers with the logits of other classes whenever gradients are on."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits.roll(1, 1) if torch.is_grad_enabled() else logits


class LookUp(nn.Module):
    """Answers with the label of an image that it has seen to the last bit, and asks the network otherwise."""

    def __init__(self, network: nn.Module, seen: Batch):
        super().__init__()
        self.network, self.seen = network, seen

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        same = (x.flatten(1)[:, None] == self.seen.x.flatten(1)[None]).all(2)
        label = self.seen.y[same.long().argmax(1)]
        known = 20.0 * functional.one_hot(label, logits.shape[1]).to(logits)
        return torch.where(same.any(1, keepdim=True), known, logits)


class Standardised(nn.Module):
    """Subtracts the batch's mean logits: what an image is said to be depends on its neighbours."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        z = self.network(x)
        return z - 0.2 * z.mean(0, keepdim=True)


def one_hot(z: Tensor) -> Tensor:
    return functional.one_hot(z.argmax(1), z.shape[1]).to(z)


class Cached(nn.Module):
    """Gives whatever lies near an earlier question the earlier answer, with the network's own gradients."""

    def __init__(self, network: nn.Module, reach: float):
        super().__init__()
        self.network, self.reach = network, reach
        self.asked: list[Tensor] = []
        self.answers: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.network(x)
        answers = z.detach().clone()
        known = torch.stack(self.asked) if self.asked else x.detach()[:0]
        for place, image in enumerate(x.detach()):
            near = ((known - image).flatten(1).abs().amax(1) <= self.reach).nonzero()
            if len(near):
                answers[place] = self.answers[int(near[0])]
            else:
                self.asked.append(image.clone())
                self.answers.append(answers[place].clone())
        return answers + (z - z.detach())


class Watchful(nn.Module):
    """Answers at random once so many questions were near an earlier one without being the same."""

    def __init__(self, network: nn.Module, reach: float, patience: int):
        super().__init__()
        self.network, self.reach, self.patience = network, reach, patience
        self.asked: list[Tensor] = []
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        known = torch.stack(self.asked) if self.asked else x.detach()[:0]
        for image in x.detach() if self.count < self.patience else ():
            away = (known - image).flatten(1).abs().amax(1)
            self.count += int(bool(((away > 0) & (away <= self.reach)).any()))
            if not bool((away == 0).any()):
                self.asked.append(image.clone())
        z = self.network(x)
        return z if self.count < self.patience else z + 5.0 * torch.randn_like(z)


def liars() -> dict[str, Callable[[], nn.Module]]:
    """A builder for each liar; all of them share the weights of the undefended conv-small."""
    base = load(ModelName.parse("conv-small")).network

    def noisy(z: Tensor) -> Tensor:
        return z + 2.0 * torch.randn_like(z)

    def dropped(z: Tensor) -> Tensor:
        return functional.dropout(z, 0.3, training=True)

    def shuffled(z: Tensor) -> Tensor:
        hooked = 1.0 * z
        if hooked.requires_grad:
            hooked.register_hook(lambda gradient: gradient.flip(-1))
        return hooked

    def shifted(x: Tensor) -> Tensor:
        return x.roll(torch.randint(-2, 3, (2,)).tolist(), (2, 3))

    def rounded(z: Tensor) -> Tensor:
        return (1000 * z.softmax(1).clamp(min=1e-3).log()).round() / 1000

    def clipped(z: Tensor) -> Tensor:
        return (20 * z).softmax(1).clamp(1e-7, 1 - 1e-7).log()

    def root(x: Tensor) -> Tensor:
        return (x * x).sqrt()

    return {
        "zero gradients": lambda: Between(base, before=ZeroGradient.apply),
        "quantised input": lambda: Between(base, before=lambda x: (x * 8).round() / 8),
        "random logits": lambda: Between(base, after=noisy),
        "saturated logits": lambda: Between(base, after=lambda z: 1e4 * z),
        "temperature": lambda: Between(base, after=lambda z: 1e-5 * z),
        "detached layer": lambda: Hidden(base, 4, lambda z: z.detach()),
        "argmax output": lambda: Between(base, after=one_hot),
        "test-time dropout": lambda: Hidden(base, 5, dropped),
        "batch-dependent output": lambda: Standardised(base),
        "double normalisation": lambda: Between(base, before=lambda x: ((x - 0.5) / 0.25 - 0.5) / 0.25),
        "k-winners-take-all": lambda: Hidden(base, 2, winners),
        "look-up": lambda: LookUp(base, panel(200)),
        "probabilities": lambda: Between(base, after=lambda z: z.softmax(1)),
        "NaN gradient": lambda: Between(base, before=root),
        "reversed gradient": lambda: Between(base, before=Reversed.apply),
        "shuffled gradient": lambda: Hidden(base, 2, shuffled),
        "two faces": lambda: TwoFaced(base),
        "rounded log-probabilities": lambda: Between(base, after=rounded),
        "whole numbers": lambda: Between(base, before=lambda x: (64 * x).long().to(x) / 64),
        "cached answers": lambda: Cached(base, 0.2),
        "a guard": lambda: Watchful(base, 0.2, 15),
        "a patient guard": lambda: Watchful(base, 0.2, 400),
        "ranks": lambda: Between(base, after=lambda z: z.argsort(1).argsort(1).float()),
        "one shift a batch": lambda: Between(base, before=shifted),
        "a coin a batch": lambda: Calling(base, lambda inner, x: inner(x).roll(int(torch.rand(()) < 0.5), 1)),
        "shy of crowds": lambda: Calling(base, lambda inner, x: inner(x).roll(int(len(x) > 100), 1)),
        "ninth power": lambda: Between(base, after=lambda z: z**9),
        "seven times a sharp softmax": lambda: Between(base, after=lambda z: 7 * (30 * z).softmax(1)),
        "clipped log-probabilities": lambda: Between(base, after=clipped),
        "lists of numbers": lambda: Between(base, after=lambda z: torch.tensor(z.tolist())),
        **falsifiers(base),
    }


def classifier(network: nn.Module, name: str) -> Classifier:
    """A liar as a user would hand it over: nothing declared."""
    return Classifier(network, num_classes=10, name=name).eval()
