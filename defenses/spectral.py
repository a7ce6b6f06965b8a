"""Layers of bounded operator norm: a network whose logits can change only so fast."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from certify.graph import trace
from certify.rules.convolution import Conv2d
from certify.rules.linear import Linear
from defenses.base import Defense, random_layer, register_defense
from models.architecture import Architecture
from models.base import Batch
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.recipe import Recipe

# Directions that are followed together, and how often: within 2 % of the norm of a trained layer.
BLOCK, ITERATIONS = 8, 8

# One image of those that a network is being trained on: a convolution's norm depends on their size.
_SEEN: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


@register_defense("spectral")
@dataclass(frozen=True, kw_only=True)
class Spectral(Defense):
    """Keeps the operator norm of every linear and convolutional layer within `bound`, after each step.

    W <- W min(1, bound / ||A||), A the map that the layer is on images of this size and its norm the greatest
    ||A v|| / ||v||, by power iteration on A^T A: strides, padding and overlap count, which the norm of the
    reshaped kernel (torch's spectral_norm) ignores. l2 perturbations grow by the product of the norms at
    most, which the certificate `lipschitz` turns into proved radii with its own upper bound on each norm.
    The loss is the cross-entropy of `scale` times the logits, which are small in such a network: a larger
    scale buys accuracy with margin.
    Raises UserError for bound or scale <= 0.
    Source: Miyato, Kataoka, Koyama, Yoshida 2018, 1802.05957, section 2.1 and algorithm 1, with the
    convolution's own norm; Tsuzuku, Sato, Sugiyama 2018, 1802.04034, section 5.
    """

    paper = "Miyato et al. 2018, 1802.05957"

    bound: float = 1.0
    scale: float = 10.0
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in (("bound", self.bound), ("scale", self.scale)):
            if not value > 0:
                raise UserError(f"spectral needs {key} > 0, not {value:g}")

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        _SEEN[network] = batch.x[:1].detach()
        return functional.cross_entropy(self.scale * network(batch.x), batch.y)

    def after_step(self, network: nn.Module) -> None:
        bound_norms(network, _SEEN[network], self.bound)

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)

    def refuses(self, architecture: Architecture) -> str | None:
        network = architecture.build()
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            return "its batch normalisation scales again what was bounded"
        random = random_layer(architecture)
        if random:
            return random
        try:
            trace(network)
        except NotApplicable as refusal:
            return str(refusal)
        return None


def bound_norms(network: nn.Module, x: Tensor, bound: float) -> None:
    """Scales the weights of every layer whose operator norm on images like x (1, ...) is above `bound`."""
    with torch.no_grad():
        graph = trace(network)
        shapes = graph.shapes(x)
        for node in graph.nodes[1:]:
            if isinstance(node.operation, Linear | Conv2d):
                norm = operator_norm(node.operation, shapes[node.inputs[0]], x)
                node.operation.weight().mul_(bound / torch.clamp(norm, min=bound))


def operator_norm(layer: Linear | Conv2d, shape: torch.Size, like: Tensor) -> Tensor:
    """max ||A v|| / ||v|| of a layer's linear part A on inputs of `shape`, from below (0-dimensional).

    Block power iteration: an orthonormal basis V of A^T A's leading directions, from a fixed random one, and
    the largest singular value of A V.
    """
    start = Randomness(0).normal(torch.arange(BLOCK), shape).to(like)
    shift = layer.forward(torch.zeros_like(start[:1]))
    basis = start
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(basis.flatten(1).T)[0].T.reshape(-1, *shape)
        image = layer.forward(basis) - shift
        basis = layer.transpose(image.unsqueeze(0), shape)[0][0]
    return torch.linalg.matrix_norm(image.flatten(1), 2)
