"""ONNX's If and Loop where constants decide which way they go: the graphs inside, written out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, numpy_helper

from models.onnx.conversion import Conversion, Known, operator

# Rounds of a loop that are written out.
ROUNDS = 1000


def _inside(conversion: Conversion, graph: GraphProto, inputs: Sequence[Known]) -> tuple[Known, ...]:
    """The outputs of a graph within a node, which reads the names outside too."""
    outside, node = conversion.values, conversion.current
    conversion.values = {
        **outside,
        **{tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer},
        **{value.name: known for value, known in zip(graph.input, inputs, strict=True)},
    }
    for inner in graph.node:
        conversion.convert(inner)
    results = tuple(conversion.values[value.name] for value in graph.output)
    conversion.values, conversion.current = outside, node
    return results


@operator("If")
def branch(conversion: Conversion) -> tuple[Known, ...]:
    """The branch that a constant condition chooses, as exporters write for sizes that are known."""
    chosen = "then_branch" if conversion.fixed(0).item() else "else_branch"
    return _inside(conversion, conversion.attribute(chosen), [])


@operator("Loop")
def loop(conversion: Conversion) -> tuple[Known, ...]:
    """As many rounds as constants ask for, one after the other."""
    body = conversion.attribute("body")
    rounds = ROUNDS + 1 if conversion.input(0) is None else int(conversion.fixed(0).item())
    going = True if conversion.input(1) is None else bool(conversion.fixed(1).item())
    carried = [conversion.input(place) for place in range(2, len(conversion.current.input))]
    if len(body.output) != 1 + len(carried):
        conversion.refuse("that collects a value of every round is not understood")
    done = 0
    while going and done < rounds:
        if done == ROUNDS:
            conversion.refuse(f"of more than {ROUNDS} rounds is not understood")
        condition, *carried = _inside(conversion, body, [np.array(done), np.array(True), *carried])
        if not isinstance(condition, np.ndarray):
            conversion.refuse("that ends when a value of the network says so is not understood")
        going, done = bool(condition.item()), done + 1
    return tuple(carried)
