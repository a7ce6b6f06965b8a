"""Tiny models and images for tests, drawn from generators of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import Batch, Classifier
from models.threat import UNIT_BOX, Box

WIDE = Box(-1e3, 1e3)


def linear(weight: Tensor, bias: Tensor, box: Box = UNIT_BOX) -> Classifier:
    """The affine classifier z = weight x + bias on inputs (n, d)."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0]).to(weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return Classifier(layer, num_classes=len(weight), box=box, name="linear")


def random_linear(classes: int, inputs: int, seed: int = 0, box: Box = UNIT_BOX) -> Classifier:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, inputs, generator=generator)
    return linear(weight, 0.1 * torch.randn(classes, generator=generator), box)


def mlp(classes: int = 4, inputs: int = 12, seed: int = 0, hidden: int = 16) -> Classifier:
    """inputs - hidden - classes with ReLU on inputs (n, 1, 3, inputs / 3), with random weights."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.utils.skip_init(nn.Linear, a, b) for a, b in ((inputs, hidden), (hidden, classes))]
    for layer in layers:
        nn.init.normal_(layer.weight, std=1.5 / layer.in_features**0.5, generator=generator)
        nn.init.normal_(layer.bias, std=0.3, generator=generator)
    network = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1])
    return Classifier(network, num_classes=classes, name="mlp")


def images(n: int, shape: tuple[int, ...] = (1, 3, 4), seed: int = 1, box: Box = UNIT_BOX) -> Tensor:
    """Uniform images (n, *shape) in `box`."""
    return box.lower + box.width * torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def labelled(model: Classifier, x: Tensor) -> Batch:
    """`x` with the model's own labels, so that every sample counts as correctly classified."""
    with torch.no_grad():
        return Batch.of(x, model.logits(x).argmax(1))


DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


def exact_distance(model: Classifier, batch: Batch, norm: str) -> Tensor:
    """min_j |f_j| / ||w_j||_q of an affine model, by a loop over samples and classes: (n,) float64."""
    weight, bias = model.network.weight.detach().double(), model.network.bias.detach().double()
    distances = []
    for x, y in zip(batch.x.double(), batch.y, strict=True):
        z = weight @ x + bias
        rivals = [j for j in range(len(z)) if j != y]
        distances.append(min((z[y] - z[j]) / (weight[y] - weight[j]).norm(p=DUAL[norm]) for j in rivals))
    return torch.stack(distances)


class Asked(nn.Module):
    """Keeps the points that a network is asked about, those with gradients apart, and its answers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.points: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.differentiated: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.network(x)
        self.points.append(x.detach().clone())
        self.answers.append(z.detach().clone())
        if torch.is_grad_enabled():
            self.differentiated.append(x.detach().clone())
        return z


class Counting(nn.Module):
    """Wraps a network and counts the samples it evaluates, and those it is differentiated at, by itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forward_samples = 0
        self.backward_samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forward_samples += len(x)
        z = self.network(x)
        if z.requires_grad:
            z.register_hook(self._count)
        return z

    def _count(self, gradient: Tensor) -> None:
        self.backward_samples += len(gradient)
