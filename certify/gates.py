"""SiLU, Mish and Hardswish where a network spells them out as z times a gate of z."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

PRODUCTS = {operator.mul, torch.mul, "mul"}
SIGMOIDS = {torch.sigmoid, F.sigmoid, "sigmoid", nn.Sigmoid}
HARDSIGMOIDS = {F.hardsigmoid, nn.Hardsigmoid}
TANHS = {torch.tanh, F.tanh, "tanh", nn.Tanh}
SOFTPLUSES = {F.softplus, nn.Softplus}

# The gate's operations, the last first, and what z times the gate is.
GATES: list[tuple[tuple[set[Any], ...], Callable[..., Any]]] = [
    ((SIGMOIDS,), F.silu),
    ((HARDSIGMOIDS,), F.hardswish),
    ((TANHS, SOFTPLUSES), F.mish),
]


def with_gates_named(traced: fx.Graph, root: nn.Module) -> fx.Graph:
    """`traced` with one call for each product that spells out a gated activation; changed in place."""
    for product in list(traced.nodes):
        if product.target not in PRODUCTS or len(product.args) != 2 or product.kwargs:
            continue
        for z, gate in (product.args, product.args[::-1]):
            found = _gated(z, gate, root)
            if found is None:
                continue
            function, steps = found
            with traced.inserting_before(product):
                product.replace_all_uses_with(traced.call_function(function, (z,)))
            for needless in (product, *steps):
                if not needless.users:
                    traced.erase_node(needless)
            break
    return traced


def _gated(z: Any, gate: Any, root: nn.Module) -> tuple[Callable[..., Any], list[fx.Node]] | None:
    """The function that z times `gate` is, and the gate's own nodes, the last first."""
    for kinds, function in GATES:
        steps, here = [], gate
        for kind in kinds:
            if not isinstance(here, fx.Node) or not _is_plain(here, kind, root):
                break
            steps.append(here)
            here = here.args[0]
        else:
            if isinstance(z, fx.Node) and here is z:
                return function, steps
    return None


def _is_plain(node: fx.Node, kind: set[Any], root: nn.Module) -> bool:
    """Whether a node is one of these functions of one value, with no setting but the usual ones."""
    if len(node.args) != 1 or node.kwargs not in ({}, {"inplace": False}):
        return False
    if node.op != "call_module":
        return node.target in kind
    module = root.get_submodule(str(node.target))
    if module._forward_hooks or module._forward_pre_hooks or type(module) not in kind:
        return False
    return not isinstance(module, nn.Softplus) or (module.beta, module.threshold) == (1, 20)
