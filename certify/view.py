"""What one entry of a convolutional layer sees of every plane before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.graph import Graph
from certify.rules.activation import Activation
from certify.rules.arithmetic import ScaleShift, Sum
from certify.rules.convolution import Conv2d
from certify.rules.operation import Operation
from certify.rules.pooling import AveragePool, MaxPool

# A window of more than this share of its plane costs as much as the plane.
SHARE = 0.75

APPLICABLE = (Conv2d, AveragePool, MaxPool, Activation, Sum)


@dataclass(frozen=True)
class View:
    """Where the entries at position p see a node: from stride p + shift, for size entries, by axis."""

    stride: tuple[int, int] = (1, 1)
    shift: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (1, 1)

    def before(self, operation: Operation | None) -> View:
        """The same, seen through an operation."""
        if isinstance(operation, Conv2d):
            kernel, spacing = operation.weight().shape[-2:], operation.dilation
        elif isinstance(operation, AveragePool | MaxPool):
            kernel, spacing = torch.Size(operation.kernel), getattr(operation, "dilation", (1, 1))
        else:
            return self
        step, padding, axes = operation.stride, operation.padding, range(2)
        return View(
            _two(self.stride[a] * step[a] for a in axes),
            _two(self.shift[a] * step[a] - padding[a] for a in axes),
            _two((self.size[a] - 1) * step[a] + spacing[a] * (kernel[a] - 1) + 1 for a in axes),
        )

    def joined(self, other: View) -> View:
        """The smallest view that holds both, which have the same stride."""
        shift = _two(map(min, self.shift, other.shift))
        ends = [max(v.shift[a] + v.size[a] for v in (self, other)) for a in range(2)]
        return View(self.stride, shift, _two(end - start for end, start in zip(ends, shift, strict=True)))

    def indices(self, axis: int, position: Tensor) -> Tensor:
        """The places (m, size) along an axis that positions (m,) see, some of them outside the plane."""
        start = position * self.stride[axis] + self.shift[axis]
        return start[:, None] + torch.arange(self.size[axis], device=position.device)


def _two(values: Iterable[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def views(graph: Graph, x: Tensor, node: int) -> dict[int, View] | None:
    """What an entry of `node` sees of every node before it; None where windows do not pay or do not apply.

    They apply to convolutions, pooling, sums, activations and constants that are the same all over a plane.
    """
    shapes = graph.shapes(x)
    if len(shapes[node]) != 3:
        return None
    found = {node: View()}
    for i in range(node, 0, -1):
        if i not in found:
            continue
        operation = graph.nodes[i].operation
        if not (isinstance(operation, APPLICABLE) or _uniform(operation, x, shapes[i])):
            return None
        view = found[i].before(operation)
        for j in graph.nodes[i].inputs:
            if len(shapes[j]) != 3 or (j in found and found[j].stride != view.stride):
                return None
            if isinstance(operation, Sum) and shapes[j] != shapes[i]:
                return None
            found[j] = found[j].joined(view) if j in found else view
            if found[j].size[0] * found[j].size[1] > SHARE * shapes[j][1] * shapes[j][2]:
                return None
    return found if 0 in found else None


def _uniform(operation: object, x: Tensor, shape: torch.Size) -> bool:
    if not isinstance(operation, ScaleShift):
        return False
    parts = operation.parts(x.new_zeros(1, *shape))
    return all(size == 1 for part in parts for size in part.shape[-2:])
