"""Networks that end in a softmax, which keeps the order of the outputs: their logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn


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
