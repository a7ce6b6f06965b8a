"""Networks that end in a softmax, which keeps the order of the outputs, or in a label: their logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from onnx import NodeProto, helper
from torch import fx, nn

from models.errors import NotApplicable
from models.onnx.ports import Told
from models.onnx.reader import OnnxNetwork, load_model, read

# What may stand behind labels without choosing among them.
RESHAPED = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


def without_softmax(network: nn.Module) -> nn.Module:
    """`network` with the logits as its outputs where it ends in Softmax or LogSoftmax over all of them.

    Each output is larger than another where its logit is; else the network itself.
    """
    if not isinstance(network, fx.GraphModule):
        return network
    (output,) = (node for node in network.graph.nodes if node.op == "output")
    last = output.args[0]
    if last.target not in (F.softmax, F.log_softmax):
        return network
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        if node not in (last, output):
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last.args[0]])
    return fx.GraphModule(network, graph, "OnnxNetwork").eval()


def read_classifier(path: Path, shapes: Sequence[tuple[int, ...]] = ()) -> OnnxNetwork:
    """The network in `path`, or its scores where the file returns a label alone: that of the largest.

    `shapes` are those that its input may have where the file leaves sizes open.
    """
    finder, told = _finder(path), [Told(tuple(shapes))]
    if finder is None:
        return read(path, told=told)
    scores = finder.input[0]
    network = read(path, targets=[scores], told=told)
    shape = network.targets[0].shape
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in finder.attribute}
    axis = int(given.get("axis", 0 if finder.op_type == "ArgMax" else -1))
    if math.prod(shape) != shape[axis]:
        raise NotApplicable(
            f"{path} returns a label for each of {math.prod(shape) // shape[axis]} places of '{scores}', of "
            f"shape {shape}: a classifier has one"
        )
    return network


def _finder(path: Path) -> NodeProto | None:
    """The node by which a file that returns nothing but labels has found them."""
    graph = load_model(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(graph.output[0].name) if len(graph.output) == 1 else None
    while node is not None and node.op_type in RESHAPED:
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type in ("ArgMax", "Hardmax") else None
