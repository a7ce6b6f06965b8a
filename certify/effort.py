"""What backward bounds cost on a network, before any is computed."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from certify.prepare import prepare
from certify.rules.operation import Affine
from models.base import Batch, Classifier


def backward_multiplications(model: Classifier, batch: Batch) -> float:
    """At most so many multiplications bound every neuron of one image by a backward pass of its own.

    The entries that enter operations that are not affine, times the multiplications of a forward pass:
    about 3e9 on `conv-small`, 4e10 on `lenet`, 2e12 on a ResNet-18, where an image takes minutes.
    Stable neurons need no pass, so that it may be much less. Raises what `prepare` raises.
    """
    graph, x = prepare(model, batch.x[:1])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph.values(x)
    shapes = graph.shapes(x)
    rows = sum(
        shapes[j].numel()
        for node in graph.nodes
        if node.operation is not None and not isinstance(node.operation, Affine)
        for j in node.inputs
    )
    return rows * counter.get_total_flops() / 2
