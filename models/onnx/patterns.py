"""Finds GELU in files that spell it out by the error function: z (1 + erf(z / sqrt 2)) / 2."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

NEAR = 1e-5


class _Uses:
    """Who makes and who reads each name, and which names are constant numbers."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.kept = {value.name for value in model.graph.output}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def number(self, name: str) -> float | None:
        """The constant of this name, where it is one number."""
        array = self.arrays.get(name)
        maker = self.makers.get(name)
        if array is None and maker is not None and maker.op_type == "Constant":
            array = next((numpy_helper.to_array(a.t) for a in maker.attribute if a.name == "value"), None)
        return float(np.asarray(array).reshape(())) if array is not None and array.size == 1 else None

    def only_reader(self, name: str) -> NodeProto | None:
        """The one node that reads a name which is no output."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.kept else None

    def beside(self, node: NodeProto, name: str) -> str:
        """The other input of a node of two."""
        return node.input[1] if node.input[0] == name else node.input[0]

    def scaled(self, node: NodeProto | None, operator: str, number: float) -> str | None:
        """What a node adds to or multiplies with this number."""
        if node is None or node.op_type != operator or len(node.input) != 2:
            return None
        for name in node.input:
            found = self.number(name)
            if found is not None and abs(found - number) < NEAR:
                return self.beside(node, name)
        return None


def with_gelu(model: ModelProto) -> ModelProto:
    """The model with one Gelu node in place of each such spelling; others are left as they are."""
    uses = _Uses(model)
    found = {id(last): (inner, gone) for last, inner, gone in _spelled(uses)}
    gone = {id(node) for _, nodes in found.values() for node in nodes}
    if not found:
        return model
    changed = ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    for node in uses.nodes:
        if id(node) in found:
            inner = found[id(node)][0]
            changed.graph.node.append(helper.make_node("Gelu", [inner], list(node.output), node.name))
        elif id(node) not in gone:
            changed.graph.node.append(node)
    return changed


def _spelled(uses: _Uses) -> Iterator[tuple[NodeProto, str, list[NodeProto]]]:
    """The last node of each spelling, the name of z, and the nodes that it makes needless."""
    for erf in uses.nodes:
        if erf.op_type != "Erf":
            continue
        shrunk = uses.makers.get(erf.input[0])
        z = uses.scaled(shrunk, "Mul", 1 / math.sqrt(2))
        if z is None and shrunk is not None and shrunk.op_type == "Div":
            divisor = uses.number(shrunk.input[1])
            z = shrunk.input[0] if divisor is not None and abs(divisor - math.sqrt(2)) < NEAR else None
        plus = uses.only_reader(erf.output[0])
        if z is None or shrunk is None or uses.only_reader(erf.input[0]) is None:
            continue
        if plus is None or uses.scaled(plus, "Add", 1.0) is None:
            continue
        first = uses.only_reader(plus.output[0])
        if first is None or first.op_type != "Mul":
            continue
        last = uses.only_reader(first.output[0])
        if uses.beside(first, plus.output[0]) == z and uses.scaled(last, "Mul", 0.5) is not None:
            assert last is not None
            yield last, z, [shrunk, erf, plus, first]
            continue
        half = uses.makers.get(uses.beside(first, plus.output[0]))
        if (
            uses.scaled(half, "Mul", 0.5) == z
            and half is not None
            and uses.only_reader(half.output[0]) is first
        ):
            yield first, z, [half, shrunk, erf, plus]
