"""Layers of bounded norm: dense matrices, the bound after training, and proofs against attacks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.deepfool import DeepFool
from certify.graph import Node, trace
from certify.lipschitz import Lipschitz
from certify.rules.convolution import Conv2d
from certify.rules.linear import Linear
from defenses.spectral import Spectral, bound_norms, operator_norm
from defenses.training import train
from defenses.zoo import ModelName
from models.base import Batch, Classifier
from models.data import Dataset
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel

SHAPE = (2, 9, 7)


def network(*layers: nn.Module, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
    return nn.Sequential(*layers).double()


def layers_of(net: nn.Module, x: Tensor) -> list[tuple[Node, torch.Size]]:
    graph = trace(net)
    shapes = graph.shapes(x)
    return [
        (node.operation, shapes[node.inputs[0]])
        for node in graph.nodes[1:]
        if isinstance(node.operation, Linear | Conv2d)
    ]


def dense_norm(layer: Linear | Conv2d, shape: torch.Size) -> float:
    """The largest singular value of the layer's matrix, column by column."""
    units = torch.eye(shape.numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        columns = layer.forward(units) - layer.forward(torch.zeros_like(units[:1]))
    return float(torch.linalg.svdvals(columns.flatten(1)).max())


CONVOLUTIONS = [
    nn.Conv2d(2, 4, 3, padding=1),
    nn.Conv2d(2, 4, 4, stride=2, padding=1),
    nn.Conv2d(2, 5, (3, 2), stride=(2, 1)),
    nn.Conv2d(2, 4, 3, dilation=2, padding=2),
    nn.Conv2d(2, 4, 3, padding=1, groups=2),
    nn.Conv2d(2, 3, 1, stride=3),
]


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_the_norm_is_that_of_the_dense_matrix(convolution: nn.Conv2d) -> None:
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    ((layer, shape),) = layers_of(network(convolution), x)
    true, found = dense_norm(layer, shape), float(operator_norm(layer, shape, x).detach())
    assert 0.98 * true <= found <= true * (1 + 1e-9)
    one = torch.ones((), dtype=torch.float64)
    assert true <= float(layer.lipschitz("l2", [one], [shape]))


def test_the_reshaped_kernels_norm_is_something_else() -> None:
    """A kernel of ones: the operator's norm nears its sum, the reshaped kernel's is its length."""
    net = network(nn.Conv2d(1, 1, 3, padding=1, bias=False))
    net[0].weight.data.fill_(1.0)
    x = torch.zeros(1, 1, 24, 24, dtype=torch.float64)
    ((layer, shape),) = layers_of(net, x)
    assert float(torch.linalg.matrix_norm(net[0].weight.flatten(1), 2)) == pytest.approx(3.0)
    assert 8.7 < float(operator_norm(layer, shape, x)) < 9.0


def test_bounding_scales_what_is_above_and_leaves_the_rest() -> None:
    net = network(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(140, 6), nn.ReLU(), nn.Linear(6, 3))
    net[0].weight.data *= 20
    net[5].weight.data *= 0.01
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    kept, direction = net[5].weight.clone(), net[0].weight / net[0].weight.norm()
    bias = net[0].bias.clone()
    bound_norms(net, x, 0.8)
    norms = [dense_norm(layer, shape) for layer, shape in layers_of(net, x)]
    assert norms[0] == pytest.approx(0.8, rel=0.02)
    assert max(norms) <= 0.8 * 1.02
    assert torch.equal(net[5].weight, kept)
    assert torch.allclose(net[0].weight / net[0].weight.norm(), direction)
    assert torch.equal(net[0].bias, bias)


def toy() -> Dataset:
    """120 images of 6x6 whose brighter third tells their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    pixels = torch.randint(0, 60, (120, 1, 6, 6), generator=generator)
    for label in range(3):
        pixels[labels == label, :, 2 * label : 2 * label + 2] += 160
    return Dataset("toy", pixels.to(torch.uint8), labels, 3)


@pytest.fixture(scope="module")
def trained() -> Classifier:
    net = network(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).float()
    for _ in train(net, Spectral(), Recipe(epochs=15, batch_size=30, learning_rate=2e-2), toy(), seed=0):
        pass
    return Classifier(net, num_classes=3)


def batch() -> Batch:
    return toy().batch(torch.arange(120))


def test_a_trained_networks_layers_keep_the_bound_and_it_has_learnt(trained: Classifier) -> None:
    net = trained.network.double()
    norms = [dense_norm(*one) for one in layers_of(net, batch().x[:1].double())]
    net.float()
    assert 0.9 < max(norms) <= 1.02
    assert float((trained.logits(batch().x).argmax(1) == batch().y).double().mean()) > 0.97


def test_no_deepfool_perturbation_is_shorter_than_the_proved_radius(trained: Classifier) -> None:
    some, proved = batch(), torch.zeros(120)
    for eps in torch.linspace(0.05, 2.0, 40).tolist():
        certified = Lipschitz().run(trained, some, ThreatModel("l2", eps), Randomness(0)).certified
        proved = torch.where(certified, torch.full_like(proved, eps), proved)
    found = DeepFool(overshoot=0.02).run(trained, some, ThreatModel("l2", None), Randomness(0))
    assert bool((found.distance[found.success] >= proved[found.success]).all())
    # Neither side is idle: most images have a radius, and it is a fair part of the way.
    assert float((proved > 0).double().mean()) > 0.9
    assert float((proved / found.distance)[found.success].median()) > 0.25


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_loss_is_the_cross_entropy_of_scaled_logits(scale: float) -> None:
    net, some = network(nn.Flatten(), nn.Linear(36, 3)).float(), batch()
    value = Spectral(scale=scale).loss(net, some, 0.5, Randomness(0))
    expected = nn.functional.cross_entropy(scale * net(some.x), some.y)
    assert float(value.detach()) == pytest.approx(float(expected.detach()))


def test_what_cannot_be_bounded_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="batch normalisation"):
        ModelName.parse("resnet-small+spectral").parts()
    for wrong in ({"bound": 0.0}, {"scale": -1.0}):
        with pytest.raises(UserError, match="spectral needs"):
            Spectral(**wrong)
