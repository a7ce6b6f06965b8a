"""A network read from a file as nn.Sequential where it is a chain of layers, which proof files speak of."""

from __future__ import annotations

import copy
import operator as python

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


def as_chain(network: fx.GraphModule, example: Tensor) -> nn.Module:
    """The layers of `network` one after the other, or `network` itself where it is no such chain.

    Layers are Linear on vectors (a sum with a constant behind one is its bias), Conv2d, ReLU and Flatten;
    example (1, ...) is an input.
    """
    layers: list[nn.Module] = []
    last: fx.Node | None = None
    value = example
    for node in network.graph.nodes:
        if node.op == "output":
            return nn.Sequential(*layers).eval() if node.args == (last,) else network
        if node.op == "get_attr":
            continue
        if last is not None:
            if [one for one in node.all_input_nodes if one.op != "get_attr"] != [last]:
                return network
            if node.target is python.add:
                before, layer = layers[:-1], _with_bias(network, node, layers[-1:], value)
            else:
                before, layer = layers, _layer(network, node, value)
            if layer is None:
                return network
            layers = [*before, layer]
            with torch.no_grad():
                value = nn.Sequential(*layers)(example)
        last = node
    return network


def _layer(network: fx.GraphModule, node: fx.Node, value: Tensor) -> nn.Module | None:
    """The layer that a node stands for on `value`, if any."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        plain = type(module) is nn.Conv2d or (type(module) is nn.Linear and value.dim() == 2)
        return module if plain else None
    if node.target is F.relu:
        return nn.ReLU()
    if node.target is torch.reshape and node.args[1] == (-1, value.numel()):
        return nn.Flatten()
    return None


def _with_bias(
    network: fx.GraphModule, node: fx.Node, last: list[nn.Module], value: Tensor
) -> nn.Module | None:
    """The last layer with the constant that a node adds to its output as part of its bias, if it can be."""
    constant = next((one for one in node.all_input_nodes if one.op == "get_attr"), None)
    if constant is None or not last or not isinstance(last[0], nn.Linear):
        return None
    added = network.get_buffer(str(constant.target))
    if added.shape != value.shape[1:]:
        return None
    layer = copy.deepcopy(last[0])
    layer.bias = nn.Parameter(added if layer.bias is None else layer.bias + added, requires_grad=False)
    return layer
