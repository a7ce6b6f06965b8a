"""What the tests of momentum's relatives share: a network with known gradients, and runs side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.access import GradientAccess
from attacks.directions import Iterate
from attacks.losses import aimed
from attacks.momentum import Momentum
from models.base import Batch, Classifier
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box, ThreatModel
from tests.builders import Counting, images, labelled, mlp

FULL = {"early_stop": False}


class Cubic(nn.Module):
    """z_0 = 0 and z_1 = sum_i w_i (x_i - c)^3 on inputs (n, ...): the margin's gradient is 3 w (x - c)^2."""

    def __init__(self, weight: Tensor, centre: float = 0.0) -> None:
        super().__init__()
        self.weight, self.centre = weight, centre

    def forward(self, x: Tensor) -> Tensor:
        value = (self.weight * (x - self.centre) ** 3).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(value), value], 1)

    def slope(self, x: Tensor) -> Tensor:
        return 3 * self.weight * (x - self.centre) ** 2


def cubic(shape: tuple[int, ...], box: Box = UNIT_BOX, centre: float = 0.0) -> Classifier:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Classifier(Cubic(weight, centre), num_classes=2, box=box, name="cubic")


def proposal(attack: Momentum, model: Classifier, batch: Batch, threat: ThreatModel, seed: int = 0) -> Tensor:
    return attack.propose(GradientAccess(model, len(batch)), batch, threat, Randomness(seed), None)


def iterate(model: Classifier, batch: Batch, z: Tensor, velocity: Tensor, *, step: int = 0) -> Iterate:
    """Where an ascent on the margin stands, all samples of the batch in it."""
    view, rows = GradientAccess(model, len(batch)), torch.arange(len(batch))
    values = aimed("margin", batch.y, None)
    return Iterate(view, z, rows, batch.index, step, values, view.gradient(z, rows, values)[2], velocity)


def by_hand(x: Tensor, threat: ThreatModel, steps: int, decay: float, direction) -> list[Tensor]:
    """Momentum written out on `direction(t, x_t, g_t)`: the iterates x_0 .. x_steps."""
    z, velocity, trace = x, torch.zeros_like(x), [x]
    for step in range(steps):
        slope = direction(step, z, velocity)
        velocity = decay * velocity + slope / slope.abs().flatten(1).sum(1).reshape(-1, *[1] * (x.dim() - 1))
        unit = velocity.sign()
        if threat.norm == "l2":
            unit = velocity / velocity.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
        z = threat.project(x, z + threat.eps / steps * unit)
        trace.append(z)
    return trace


def passes(attack: Momentum, norm: str = "linf") -> tuple[Tensor, Tensor]:
    """Forward and backward passes booked per sample, checked against a network that counts by itself."""
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(12))
    counter.forward_samples = counter.backward_samples = 0
    result = attack.run(model, batch, ThreatModel(norm, 0.05), Randomness(0), batch_size=5)
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    return result.forward, result.backward


def same_in_other_units(attack: Momentum, norm: str, *, origin: float = 0.0, scale: float = 255.0) -> None:
    """An affine change of the units maps perturbations along: the box [origin, origin + scale] for [0, 1]."""
    small, large = mlp().double(), mlp().double()
    with torch.no_grad():
        large.network[1].weight /= scale
        large.network[1].bias -= origin * large.network[1].weight.sum(1)
    large.box = Box(origin, origin + scale)
    batch = labelled(small, images(20).double())
    moved = Batch(origin + scale * batch.x, batch.y, batch.index)
    a = proposal(attack, small, batch, ThreatModel(norm, 0.1))
    b = proposal(attack, large, moved, ThreatModel(norm, 0.1 * scale, large.box))
    torch.testing.assert_close((b - origin) / scale, a, atol=1e-6, rtol=0)
