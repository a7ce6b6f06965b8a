"""Lipschitz products: operator norms against dense matrices, margins against closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from certify.graph import trace
from certify.ibp import IntervalBounds
from certify.l1_product import L1Product
from certify.lipschitz import Lipschitz
from certify.product import lipschitz_constants
from models.base import Classifier
from models.errors import NotApplicable
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.certify.builders import FAMILIES, batch, margins_of, mlp, model

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 2, "stride": 3},
]


def dense(network, shape):
    inputs = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    return (network(inputs) - network(torch.zeros_like(inputs))).flatten(1).T


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_convolutions_norm_is_bounded_from_above_and_closely(options):
    torch.manual_seed(0)
    network = nn.Conv2d(2, 4, **options).double()
    constant = lipschitz_constants(trace(network), batch(1).x.double(), "l2")[-1]
    exact = torch.linalg.matrix_norm(dense(network, (2, 6, 6)), 2)
    assert exact <= constant <= 1.3 * exact
    row_sum = lipschitz_constants(trace(network), batch(1).x.double(), "linf")[-1]
    assert dense(network, (2, 6, 6)).abs().sum(1).amax() <= row_sum * (1 + 1e-12)


def test_the_reshaped_kernels_norm_is_no_bound():
    network = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    nn.init.ones_(network.weight)
    constant = lipschitz_constants(trace(network), torch.zeros(1, 1, 12, 12).double(), "l2")[-1]
    exact = torch.linalg.matrix_norm(dense(network, (1, 12, 12)), 2)
    assert torch.linalg.matrix_norm(network.weight.flatten(1), 2) < 0.5 * exact
    assert exact <= constant


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_jacobian_is_larger_than_the_product(family, norm):
    judged = model(family)
    network, x = judged.network.double(), batch(4).x.double()
    if family in ("bent", "attentive", "multiplied", "jumping"):
        with pytest.raises(NotApplicable, match="has no Lipschitz constant"):
            lipschitz_constants(trace(network, like=x), x, norm)
        return
    constant = lipschitz_constants(trace(network), x, norm)[-1]
    for point in x:
        jacobian = torch.autograd.functional.jacobian(lambda p: network(p[None])[0], point).flatten(1)
        size = jacobian.abs().sum(1).amax() if norm == "linf" else torch.linalg.matrix_norm(jacobian, 2)
        assert size <= constant * (1 + 1e-9)


@pytest.mark.parametrize(("certifier", "norm", "order"), [(L1Product(), "linf", 1), (Lipschitz(), "l2", 2)])
def test_a_linear_network_has_the_closed_form(certifier, norm, order):
    judged, data = model(mlp(72, 3)), batch()
    lower = certifier.run(judged, data, ThreatModel(norm, 0.1), Randomness(0)).lower
    network = judged.network.double()
    difference = network[1].weight[data.y][:, None] - network[1].weight
    exact = margins_of(network, data.x.double(), data.y) - 0.1 * difference.norm(order, dim=2)
    other = torch.arange(3) != data.y[:, None]
    assert torch.allclose(lower[other], exact[other], atol=1e-6)


@pytest.mark.parametrize("widths", [(72, 9, 3), (72, 8, 7, 3)])
def test_the_product_is_never_above_interval_bounds_without_a_box(widths):
    judged, data = Classifier(mlp(*widths).eval(), num_classes=3), batch(8)
    threat = ThreatModel("linf", 0.03, Box(-torch.inf, torch.inf))
    product = L1Product().run(judged, data, threat, Randomness(0)).lower
    interval = IntervalBounds().run(judged, data, threat, Randomness(0)).lower
    other = torch.arange(3) != data.y[:, None]
    assert (interval - product)[other].min() >= -1e-9


def test_overlapping_max_pools_stretch_l2():
    constant = lipschitz_constants(trace(nn.MaxPool2d(3, 1)), torch.zeros(1, 1, 6, 6).double(), "l2")[-1]
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2, 2] = 1
    assert F.max_pool2d(x, 3, 1).norm() <= constant
    assert constant == 3
