"""Tiny networks of each operation family, and searches for margins that no lower bound may exceed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Batch, Classifier
from models.pixels import FreePixels
from models.threat import ThreatModel
from models.transformation import Transformation

SHAPE = (2, 6, 6)
CLASSES = 3


class Residual(nn.Module):
    """x + f(x) inside a network, with functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.relu(x + self.second(F.relu(self.first(x))))
        x = (x - 0.5 * self.first(x)).relu()
        return self.head(x.mean((2, 3)))


class Normalised(nn.Module):
    """Normalises inside itself, by buffers and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.3, 0.6]))
        self.register_buffer("std", torch.tensor([0.2, 0.5]))
        self.conv = nn.Conv2d(2, 3, 3, stride=2)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean[None, :, None, None]) / self.std.view(1, -1, 1, 1)
        x = F.relu(1.0 - 2 * self.conv(x))
        return self.head(x.view(x.size(0), -1))


class Joined(nn.Module):
    """Two branches joined by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 3, 3)
        self.middle, self.head = nn.Conv2d(5, 2, 2), nn.Linear(18, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), torch.tanh(self.right(x))], 1)
        return self.head(F.relu(self.middle(x)).flatten(1))


class Rearranged(nn.Module):
    """Entries moved, cut out, padded and summed, with constant matrices on either side."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("left", torch.randn(5, 4))
        self.register_buffer("right", torch.randn(6, 3))
        self.conv, self.line = nn.Conv2d(2, 3, 3), nn.Conv1d(5, 2, 2, padding=1)
        self.up, self.head = nn.ConvTranspose2d(2, 2, 2, stride=2, groups=2), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.pad(x, (1, 0, 2, 1), value=0.5))).permute(0, 2, 3, 1)
        x = F.relu(self.left @ x[:, 1:, :4, -1].transpose(-1, -2))
        x = F.relu(self.line(torch.matmul(x, self.right)).narrow(2, 1, 3))
        x = F.relu(self.up(x.unsqueeze(-1))).sum(-2, keepdim=True).squeeze(2)
        return self.head(x.flatten(1))


class Bent(nn.Module):
    """Convex functions and functions with one steepest place, and a value repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.middle, self.head = (
            nn.Conv2d(2, 3, 3, stride=2), nn.Linear(12, 8), nn.Linear(8, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.conv(x))
        x = torch.erf(x) + x.mean((2, 3), keepdim=True).expand(-1, -1, 2, 2)
        x = self.middle(torch.square(x).flatten(1))
        return self.head(torch.abs(x) - F.softsign(x) + x**2)


class Selected(nn.Module):
    """Largest and least entries of lines, over dimensions and of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm = nn.Conv1d(2, 4, 3, stride=3), nn.BatchNorm1d(4)
        self.pool, self.middle, self.head = nn.MaxPool1d(3, 2, 1), nn.Linear(12, 12), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.line(x.flatten(2)))).unflatten(2, (3, 2))
        x = self.middle(
            torch.maximum(
                x.amax(3), x[:, :, :, 0] - x[:, :, :, 1].amin(1, keepdim=True).expand(-1, 4, -1)
            ).flatten(1)
        )
        pieces = x.unflatten(1, (4, 3))
        return self.head(torch.cat([torch.min(pieces, 2).values, pieces.flatten(1).amax(1, True)], 1))


class Attentive(nn.Module):
    """A small vision transformer: a class token, places, and a block behind layer normalisation."""

    def __init__(self, width: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 3, 3)
        self.token, self.places = (
            nn.Parameter(torch.randn(1, 1, width)),
            nn.Parameter(torch.randn(1, 5, width)),
        )
        self.first, self.second, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.mixed = nn.MultiheadAttention(width, heads, batch_first=True)
        self.apart = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        here = self.first(tokens)
        tokens = tokens + self.mixed(here, here, here, need_weights=False)[0]
        return self.head(self.last(tokens + self.apart(self.second(tokens)))[:, 0])


class Multiplied(nn.Module):
    """Squeeze and excitation, quotients and elementary functions of values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, stride=2), nn.GroupNorm(2, 4)
        self.gate, self.middle, self.head = nn.Linear(4, 4), nn.Linear(16, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        first, second, third = self.middle(x.flatten(1)).chunk(3, 1)
        x = torch.cat([first.exp() / (1 + second**2), torch.sqrt(1 + third.abs()), first.sin() * third], 1)
        return self.head(x - torch.log(1 + x**2).softmax(1))


class Jumping(nn.Module):
    """Signs, rounding and choices between values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.middle = nn.Conv2d(2, 3, 3, stride=2), nn.Linear(12, 8)
        self.last, self.head = nn.Linear(8, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = (7 * self.conv(x)).round() / 7
        x = self.middle(torch.sign(x.flatten(1) - 0.11))
        x = self.last(torch.where(x > 0.13, x, 0.5 - x))
        return self.head(F.hardshrink(x, 0.2) + (x < -0.21).type_as(x))


class Clamped(nn.Module):
    """Values cut from both sides and from one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.middle, self.head = (
            nn.Conv2d(2, 3, 3, stride=2),
            nn.Linear(12, 8),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.conv(x.clamp(0.1, 0.8)).clamp(min=-0.2).flatten(1))
        x = F.hardtanh(torch.minimum(x, torch.tensor(0.6)), -0.7, 2.0)
        return self.head(F.relu6(8 * x))


def mlp(*widths: int, leak: float = 0.0) -> nn.Sequential:
    """A fully connected network of the given widths, with ReLU or leaky ReLU between."""
    layers: list[nn.Module] = [nn.Flatten()]
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        if place:
            layers.append(nn.LeakyReLU(leak) if leak else nn.ReLU())
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _batch_norm() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8),
        nn.ReLU(), nn.Dropout(), nn.Linear(8, CLASSES),
    )  # fmt: skip
    for layer in network:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return network


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(72, 12, 10, CLASSES),
    "leaky": lambda: mlp(72, 10, 10, CLASSES, leak=0.2),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 2), groups=2), nn.ReLU(),
        nn.Conv2d(4, 4, 2, dilation=(1, 2), stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, CLASSES),
    ),
    "residual": Residual,
    "batch-norm": _batch_norm,
    "max-pool": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1), nn.Conv2d(3, 4, 2), nn.ReLU(),
        nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(4, CLASSES),
    ),
    "average-pool": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.AvgPool2d(3, stride=2, padding=1), nn.Conv2d(3, 5, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, CLASSES),
    ),
    "normalised": Normalised,
    "joined": Joined,
    "sigmoid": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES)
    ),
    "curved": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.Softplus(), nn.Linear(8, 8), nn.GELU(),
        nn.Linear(8, 8), nn.Softplus(3, 2), nn.Linear(8, CLASSES),
    ),
    "rearranged": Rearranged,
    "clamped": Clamped,
    "jumping": Jumping,
    "bent": Bent,
    "selected": Selected,
    "attentive": Attentive,
    "multiplied": Multiplied,
    "turning": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.SiLU(), nn.Linear(8, 8), nn.PReLU(8), nn.Linear(8, 8), nn.Mish(),
        nn.Linear(8, 6), nn.Hardswish(), nn.Softshrink(0.1), nn.Linear(6, 6), nn.SELU(), nn.Hardsigmoid(),
        nn.Linear(6, CLASSES),
    ),
}  # fmt: skip


def model(family: str | nn.Module, seed: int = 0, classes: int = CLASSES) -> Classifier:
    """A classifier of a family, or of a network, in eval mode with larger weights than usual."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FAMILIES[family]() if isinstance(family, str) else family
        if isinstance(family, str):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(1.5)
    return Classifier(network.eval(), num_classes=classes).eval()


def batch(n: int = 3, shape: tuple[int, ...] = SHAPE, seed: int = 0, classes: int = CLASSES) -> Batch:
    """Random inputs, some at the box's faces, with random labels."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(n, *shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    return Batch.of(x, torch.randint(0, classes, (n,), generator=generator))


def margins_of(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """z_y - z_j of each sample: (n, classes)."""
    z = network(x)
    return z.gather(1, y[:, None]) - z


def smallest_margins(
    judged: Classifier, data: Batch, threat: ThreatModel, *, samples: int = 60, steps: int = 12
) -> tuple[Tensor, int]:
    """The smallest margins (n, classes) found at random points, corners and by descent, and how many.

    Every point counted was checked to be legal.
    """
    network = judged.network.double()
    generator = torch.Generator().manual_seed(7)
    x, y = data.x.double(), data.y
    least, count = margins_of(network, x, y).detach(), len(x)

    def visit(point: Tensor) -> None:
        nonlocal least, count
        legal = threat.contains(x, point)
        found = margins_of(network, point, y).detach()
        least = torch.where(legal[:, None], torch.minimum(least, found), least)
        count += int(legal.sum())

    radius = threat.radius
    if isinstance(threat, FreePixels):
        for _ in range(10 * samples):
            visit(_with_free_pixels(x, threat, generator))
    for trial in range(samples):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        reach = (2 * radius if threat.norm == "linf" else 4 * radius) * (1 if trial % 2 else 0.05)
        visit(threat.project(x, x + reach * (noise.sign() if trial % 4 == 1 else noise)))
    for target in range(judged.num_classes):
        point = x.clone()
        for step in range(steps):
            point = point.detach().requires_grad_(True)
            value = margins_of(network, point, y)[:, target].sum()
            (slope,) = torch.autograd.grad(value, point)
            size = radius * (1.0 if step % 4 == 0 else 0.3)
            point = threat.project(x, point.detach() - size * threat.steepest(slope))
            visit(point)
    judged.network.float()
    return least, count


def _with_free_pixels(x: Tensor, threat: FreePixels, generator: torch.Generator) -> Tensor:
    """x (n, c, h, w) with one window, or for a mask as many pixels as it covers, set to random corners."""
    height, width = x.shape[2:]
    free = torch.zeros(height, width, dtype=torch.bool)
    if threat.norm == "mask":
        free.view(-1)[torch.randperm(height * width, generator=generator)[: threat.count(height * width)]] = (
            True
        )
    else:
        rows, columns = threat.window(height, width)
        top, left = (int(torch.randint(size, (1,), generator=generator)) for size in (height, width))
        free[top : top + rows, left : left + columns] = True
    ends = torch.rand(x.shape, generator=generator, dtype=x.dtype).round()
    return torch.where(free, threat.box.lower + threat.box.width * ends, x)


def smallest_moved_margins(
    judged: Classifier, data: Batch, threat: Transformation, *, count: int = 400
) -> tuple[Tensor, int]:
    """The smallest margins (n, classes) at corners and random moves of a transformation, and how many."""
    generator = torch.Generator().manual_seed(7)
    shape = (count, len(data), threat.parameters(data.x))
    share = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    share[: count // 4] = share[: count // 4].sign()
    least, visited = margins_of(judged, data.x, data.y).detach().double(), 0
    for moves in share * threat.limits():
        _, point, _, legal = threat.settled(data.x, moves, data.index)
        least = torch.minimum(least, margins_of(judged, point, data.y).detach().double())
        visited += int(legal.sum())
    return least, visited
