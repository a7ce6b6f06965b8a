"""Activations that a network spells out: z times a gate of z, or z above 0 and less of it below."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

ABOVE = {operator.gt, operator.ge, torch.gt, torch.ge, "gt", "ge"}
BELOW = {operator.lt, operator.le, torch.lt, torch.le, "lt", "le"}
CONVERSIONS = {"float", "double", "to", "type_as"}
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
    for choice in list(traced.nodes):
        if choice.target is torch.where and len(choice.args) == 3 and not choice.kwargs:
            _name_choice(traced, choice)
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


def _name_choice(traced: fx.Graph, choice: fx.Node) -> None:
    """Names where(z > 0, z, leak z) as the leaky ReLU it is, which is bounded far more tightly."""
    condition, first, second = choice.args
    if isinstance(condition, fx.Node) and _compares_to_zero(condition, BELOW):
        first, second = second, first
    elif not isinstance(condition, fx.Node) or not _compares_to_zero(condition, ABOVE):
        return
    leak = _share(second, first)
    if first is not condition.args[0] or leak is None or not 0 <= leak < 1:
        return
    with traced.inserting_before(choice):
        choice.replace_all_uses_with(traced.call_function(F.leaky_relu, (first, leak)))
    for needless in (choice, second, condition):
        if isinstance(needless, fx.Node) and not needless.users:
            traced.erase_node(needless)


def _compares_to_zero(node: fx.Node, targets: set[Any]) -> bool:
    plain = node.target in targets and len(node.args) == 2 and not node.kwargs
    return plain and isinstance(node.args[1], int | float) and node.args[1] == 0


def _share(part: Any, z: Any) -> float | None:
    """The number c where `part` is c z or the number 0."""
    if isinstance(part, int | float):
        return 0.0 if part == 0 else None
    if isinstance(part, fx.Node) and part.target in PRODUCTS and len(part.args) == 2 and z in part.args:
        other = part.args[1] if part.args[0] is z else part.args[0]
        return float(other) if isinstance(other, int | float) else None
    return None


def _gated(z: Any, gate: Any, root: nn.Module) -> tuple[Callable[..., Any], list[fx.Node]] | None:
    """The function that z times `gate` is, and the gate's own nodes, the last first."""
    converted, asked = [], gate
    while isinstance(asked, fx.Node) and asked.op == "call_method" and asked.target in CONVERSIONS:
        converted.append(asked)
        asked = asked.args[0]
    if isinstance(asked, fx.Node) and _compares_to_zero(asked, ABOVE) and asked.args[0] is z:
        return F.relu, [*converted, asked]
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
