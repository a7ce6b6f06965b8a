"""Margins from the product of layers' Lipschitz constants, for any graph of operations."""

from __future__ import annotations

import torch
from torch import Tensor

from certify.bounds import dot
from certify.graph import Graph
from certify.ibp import margin_rows
from certify.rules.operation import Affine

DUAL_ORDER = {"linf": 1.0, "l2": 2.0}


def lipschitz_constants(graph: Graph, x: Tensor, norm: str) -> list[Tensor]:
    """An upper bound, in `norm` linf or l2, on each node's Lipschitz constant, layer by layer."""
    shapes = graph.shapes(x)
    constants = [torch.ones((), dtype=x.dtype, device=x.device)]
    for node in graph.nodes[1:]:
        assert node.operation is not None
        given = [constants[i] for i in node.inputs]
        constants.append(node.operation.lipschitz(norm, given, [shapes[i] for i in node.inputs]))
    return constants


def product_margins(graph: Graph, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    """Lower bounds (n, classes) on z_y - z_j for ||x' - x||_norm <= eps, 0 in column y.

    The margin at x less eps times the Lipschitz constant of z_y - z_j: the product of the layers'
    constants before the last affine ones, times the dual norm of e_y - e_j folded into those.
    """
    constants, values, shapes = lipschitz_constants(graph, x, norm), graph.values(x), graph.shapes(x)
    pending = {len(graph.nodes) - 1: margin_rows(y, graph.num_classes(x), x.dtype)}
    total: Tensor | float = 0.0
    for i in reversed(range(len(graph.nodes))):
        rows = pending.pop(i, None)
        if rows is None:
            continue
        operation, inputs = graph.nodes[i].operation, graph.nodes[i].inputs
        if i in graph.tail and isinstance(operation, Affine):
            total = total + operation.constant(rows)
            for j, part in zip(inputs, operation.transpose(rows, *(shapes[j] for j in inputs)), strict=True):
                pending[j] = pending[j] + part if j in pending else part
        else:
            length = torch.linalg.vector_norm(rows.flatten(2), DUAL_ORDER[norm], dim=2)
            total = total + dot(rows, values[i]) - eps * constants[i] * length
    assert isinstance(total, Tensor)
    return total
