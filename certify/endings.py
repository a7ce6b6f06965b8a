"""Networks that end in a log-softmax: it takes one number from all logits of a sample, and keeps margins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

FUNCTIONS = (F.log_softmax, torch.log_softmax, "log_softmax")


def without_log_softmax(traced: fx.Graph, root: nn.Module) -> bool:
    """Makes the logits the outputs of a network (n, classes) that ends in a log-softmax; whether it did."""
    (output,) = (node for node in traced.nodes if node.op == "output")
    last = output.args[0]
    if not isinstance(last, fx.Node) or not _is_log_softmax(last, root) or len(last.users) > 1:
        return False
    output.args = (last.all_input_nodes[0],)
    traced.erase_node(last)
    return True


def _is_log_softmax(node: fx.Node, root: nn.Module) -> bool:
    """Whether it is one over the classes, with nothing else about it."""
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        plain = type(layer) is nn.LogSoftmax and not layer._forward_hooks and not layer._forward_pre_hooks
        return plain and getattr(layer, "dim", None) in (1, -1)
    known = {"input", "dim", "_stacklevel"} | ({"dtype"} if node.kwargs.get("dtype") is None else set())
    if node.target not in FUNCTIONS or not set(node.kwargs) <= known or len(node.args) > 2:
        return False
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return isinstance(dim, int) and dim in (1, -1)
