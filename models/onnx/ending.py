"""Networks that end in a softmax, which keeps the order of the outputs, or in a label: their logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from onnx import ModelProto, NodeProto, helper
from torch import fx, nn

from models.errors import NotApplicable, UserError
from models.onnx.ports import Told
from models.onnx.reader import OnnxNetwork, load_model, read

# What chooses among scores, or keeps their order; and what may stand behind that.
CHOOSING = {"ArgMax", "Hardmax", "Softmax", "LogSoftmax"}
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


def read_classifier(
    path: Path, shapes: Sequence[tuple[int, ...]] = (), output: str | None = None
) -> OnnxNetwork:
    """The network in `path` up to the scores of its classes: before a softmax, or the choice of a label.

    `shapes` are those that its input may have where the file leaves sizes open; `output` names the output of
    several that is meant. Raises UserError where there is no such output, NotApplicable where labels or
    probabilities are those of several places.
    """
    model, told = load_model(path), [Told(tuple(shapes))]
    names = [value.name for value in model.graph.output]
    if output is not None and output not in names:
        raise UserError(f"{path} has no output '{output}': it has {', '.join(names)}")
    chosen = names if output is None else [output]
    last = _last_choice(model, chosen[0]) if len(chosen) == 1 else None
    if last is None:
        return read(path, targets=[] if output is None else chosen, told=told)
    scores = last.input[0]
    network = read(path, targets=[scores], told=told)
    shape = network.targets[0].shape
    classes = _compared(last, shape, next((o.version for o in model.opset_import if not o.domain), 1))
    if math.prod(shape) != classes:
        raise NotApplicable(
            f"{path} returns a label for each of {math.prod(shape) // classes} places of '{scores}', of "
            f"shape {shape}: a classifier has one"
        )
    return network


def _last_choice(model: ModelProto, name: str) -> NodeProto | None:
    """The first of the nodes by which value `name` was made of scores, with none but such behind it."""
    makers = {output: node for node in model.graph.node for output in node.output}
    found, node = None, makers.get(name)
    while node is not None and node.op_type in RESHAPED | CHOOSING:
        found = node if node.op_type in CHOOSING else found
        node = makers.get(node.input[0])
    return found


def _compared(node: NodeProto, shape: tuple[int, ...], opset: int) -> int:
    """How many scores of a value of `shape` a choice is made of, or a softmax sums up."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "ArgMax":
        return shape[int(given.get("axis", 0))]
    if opset < 13:
        # Older ones take all axes from the given one on together.
        return math.prod(shape[int(given.get("axis", 1)) :])
    return shape[int(given.get("axis", -1))]
