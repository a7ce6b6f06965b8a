"""What backward bounds cost on a network, before any is computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from certify.graph import Graph
from certify.prepare import prepare
from certify.rearranged import cut_before, root
from certify.rules.operation import Affine
from certify.view import views
from models.base import Batch, Classifier


def backward_multiplications(model: Classifier, batch: Batch) -> float:
    """At most so many multiplications bound every neuron of one image by a backward pass of its own.

    Each entry that enters an operation that is not affine passes back through what it sees of the planes
    before it: about 8e7 on `conv-small`, 2e9 on `lenet`, 9e13 on a ResNet-18 for 32 x 32 pixels.
    Stable neurons need no pass, so that it may be much less. Raises what `prepare` raises.
    """
    graph, x = prepare(model, batch.x[:1])
    with torch.no_grad():
        steps = list(_steps(graph, x))
    shapes = graph.shapes(x)
    read = {
        j
        for node in graph.nodes
        if node.operation is not None and not isinstance(node.operation, Affine)
        for j in node.inputs
    }
    return sum(shapes[j].numel() * _pass(graph, x, j, steps) for j in read)


def margin_multiplications(model: Classifier, batch: Batch) -> float:
    """The multiplications of one backward pass for every class of one image. Raises what `prepare` raises."""
    graph, x = prepare(model, batch.x[:1])
    with torch.no_grad():
        return graph.num_classes(x) * sum(_steps(graph, x))


def _steps(graph: Graph, x: Tensor) -> Iterator[float]:
    """The multiplications of every node on one image."""
    values = [x]
    yield 0.0
    for node in graph.nodes[1:]:
        assert node.operation is not None
        with FlopCounterMode(display=False) as counter:
            values.append(node.operation.forward(*(values[j] for j in node.inputs)))
        yield counter.get_total_flops() / 2


def _pass(graph: Graph, x: Tensor, node: int, steps: list[float]) -> float:
    """The multiplications of one row's way from `node` back to the input."""
    seen, base = views(graph, x, node), root(graph, x, node)
    if seen is None and base is not None:
        return _pass(
            cut_before(graph, x, base), x.new_empty(1, *graph.shapes(x)[base]), node - base, steps[base:]
        )
    shapes = graph.shapes(x)
    if seen is None:
        return sum(steps[: node + 1])
    return sum(
        steps[i] * view.size[0] * view.size[1] / (shapes[i][1] * shapes[i][2]) for i, view in seen.items()
    )
