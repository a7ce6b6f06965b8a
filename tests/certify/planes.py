"""Small ReLU networks on the plane, cut into polygons on which they are affine: exact without a solver."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from certify.property import Clause

Polygon = np.ndarray


def small_network(*widths: int, seed: int, leak: float = 0.0) -> nn.Sequential:
    """A float32 ReLU network of the given widths on inputs (n, widths[0]), with biases that cut the box."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layer = nn.utils.skip_init(nn.Linear, before, after)
        nn.init.normal_(layer.weight, std=(2 / before) ** 0.5, generator=generator)
        nn.init.normal_(layer.bias, std=0.5, generator=generator)
        layers += [layer, nn.LeakyReLU(leak) if leak else nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def least_excess(network: nn.Sequential, lower: list[float], upper: list[float], clause: Clause) -> float:
    """The least of max_k (rows_k . network(x) + offsets_k) over a rectangle, by its vertices."""
    rows, offsets = clause.rows.double().numpy(), clause.offsets.double().numpy()
    least = np.inf
    for polygon, slope, shift in _pieces(network, lower, upper):
        lines = [(row @ slope, row @ shift + offset) for row, offset in zip(rows, offsets, strict=True)]
        parts = [polygon]
        for i, (a, c) in enumerate(lines):
            for b, d in lines[:i]:
                parts = [half for part in parts for half in _halves(part, a - b, c - d)]
        for part in parts:
            values = np.stack([part @ a + c for a, c in lines])
            least = min(least, float(values.max(0).min()))
    return least


def _pieces(
    network: nn.Sequential, lower: list[float], upper: list[float]
) -> Iterator[tuple[Polygon, np.ndarray, np.ndarray]]:
    (left, bottom), (right, top) = lower, upper
    corners = np.array([[left, bottom], [right, bottom], [right, top], [left, top]], dtype=np.float64)
    pieces = [(corners, np.eye(2), np.zeros(2))]
    for layer in network:
        if isinstance(layer, nn.Linear):
            weight, bias = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
            pieces = [(polygon, weight @ slope, weight @ shift + bias) for polygon, slope, shift in pieces]
        else:
            leak = getattr(layer, "negative_slope", 0.0)
            pieces = [piece for old in pieces for piece in _bent(*old, leak)]
    yield from pieces


def _bent(
    polygon: Polygon, slope: np.ndarray, shift: np.ndarray, leak: float
) -> Iterator[tuple[Polygon, np.ndarray, np.ndarray]]:
    parts = [polygon]
    for a, c in zip(slope, shift, strict=True):
        parts = [half for part in parts for half in _halves(part, a, c)]
    for part in parts:
        phase = np.where(slope @ part.mean(0) + shift > 0, 1.0, leak)
        yield part, phase[:, None] * slope, phase * shift


def _halves(polygon: Polygon, a: np.ndarray, c: float) -> list[Polygon]:
    sides = [_cut(polygon, sign * a, sign * c) for sign in (1, -1)]
    return [side for side in sides if len(side) > 2] or [polygon]


def _cut(polygon: Polygon, a: np.ndarray, c: float) -> Polygon:
    """The part of a convex polygon where a . x + c >= 0 (Sutherland and Hodgman 1974)."""
    value, kept = polygon @ a + c, []
    if (value <= 0).all():
        return polygon[:0]
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if value[i] >= 0:
            kept.append(polygon[i])
        if value[i] * value[j] < 0:
            share = value[i] / (value[i] - value[j])
            kept.append(polygon[i] + share * (polygon[j] - polygon[i]))
    return np.array(kept)
