"""ONNX's recurrent layers written out step by step: RNN, GRU and LSTM."""

from __future__ import annotations

import operator as python
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.onnx.arithmetic import combine
from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.layers import linear
from models.onnx.shapes import cut

Value = np.ndarray | Symbol
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": F.relu}


class _Direction:
    """One direction of a layer: its weights, and a step from (hidden, cell) to the next."""

    def __init__(self, conversion: Conversion, place: int) -> None:
        kind = conversion.current.op_type
        self.conversion, self.kind = conversion, kind
        self.size = int(conversion.attribute("hidden_size"))
        width = GATES[kind] * self.size
        self.inner, self.outer = (conversion.fixed(i)[place] for i in (1, 2))
        both = np.zeros(2 * width) if conversion.input(3) is None else conversion.fixed(3)[place]
        self.biases = both[:width], both[width:]
        names = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}[kind]
        given = [name.decode() for name in conversion.attribute("activations", [])]
        given = given[place * len(names) : (place + 1) * len(names)] or names
        if set(given) - set(ACTIVATIONS):
            conversion.refuse(f"with activations {', '.join(given)} is not understood")
        self.functions = [ACTIVATIONS[name] for name in given]

    def product(self, weights: np.ndarray, bias: np.ndarray, value: Value) -> Value:
        """weights @ v + bias, of a value or a constant."""
        if isinstance(value, Symbol):
            tensor = self.conversion.tensor
            return linear(self.conversion, tensor(weights), tensor(bias), value)
        return np.asarray(value) @ weights.T + bias

    def gate(self, name: int, function: int, *parts: Value) -> Symbol:
        """The sum of the parts through a function, cut to one gate where it holds several."""
        cuts = slice(name * self.size, (name + 1) * self.size)
        first, second = (
            part[..., cuts] if isinstance(part, np.ndarray) else cut(self.conversion, part, {1: cuts})
            for part in parts
        )
        return self.conversion.call(self.functions[function], self.both("Add", first, second))

    def both(self, name: str, first: Value, second: Value) -> Symbol:
        """A sum, difference or product in which one part at least is a value."""
        return combine(self.conversion, name, first, second)

    def step(self, x: Symbol, hidden: Value, cell: Value) -> tuple[Symbol, Value]:
        """The next hidden value and cell; x (1, input)."""
        bias, back = self.biases
        tensor = self.conversion.tensor
        mine = linear(self.conversion, tensor(self.inner), tensor(bias), x)
        if self.kind == "GRU":
            return self._gated(mine, hidden), cell
        theirs = self.product(self.outer, back, hidden)
        if self.kind == "RNN":
            return self.gate(0, 0, mine, theirs), cell
        enter, leave, forget = (self.gate(place, 0, mine, theirs) for place in range(3))
        new = self.both("Mul", enter, self.gate(3, 1, mine, theirs))
        cell = self.both("Add", self.both("Mul", forget, cell), new)
        return self.both("Mul", leave, self.conversion.call(self.functions[2], cell)), cell

    def _gated(self, mine: Symbol, hidden: Value) -> Symbol:
        """A step of the GRU: update and reset gates, then a new value between the old one and a candidate."""
        size, (_, back) = self.size, self.biases
        theirs = self.product(self.outer[: 2 * size], back[: 2 * size], hidden)
        update, reset = (self.gate(place, 0, mine, theirs) for place in range(2))
        weights, bias = self.outer[2 * size :], back[2 * size :]
        old: Value
        if self.conversion.attribute("linear_before_reset", 0):
            old = self.both("Mul", reset, self.product(weights, bias, hidden))
        else:
            old = self.product(weights, bias, self.both("Mul", reset, hidden))
        own = cut(self.conversion, mine, {1: slice(2 * size, 3 * size)})
        candidate = self.conversion.call(self.functions[1], self.both("Add", own, old))
        return self.both("Add", candidate, self.both("Mul", update, self.both("Sub", hidden, candidate)))


@operator(*GATES)
def recurrent(conversion: Conversion) -> tuple[Known, ...]:
    """Every step's hidden values, then the last ones, and the LSTM's last cells."""
    value = conversion.symbol()
    if len(value.shape) != 3 or value.shape[1] != 1 or conversion.attribute("layout", 0):
        conversion.refuse(f"is understood on steps of one sample, not on {value.shape}")
    for name, absent in (("clip", None), ("input_forget", 0), ("activation_alpha", None)):
        if conversion.attribute(name, absent) != absent:
            conversion.refuse(f"with {name} is not understood")
    if conversion.input(7) is not None:
        conversion.refuse("with peepholes is not understood")
    steps = value.shape[0]
    if conversion.input(4) is not None and np.any(conversion.fixed(4) != steps):
        conversion.refuse("with sequences shorter than its input is not understood")
    inputs = [_step(conversion, value, step) for step in range(steps)]
    way = str(conversion.attribute("direction", "forward"))
    turned = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[way]
    rows: list[list[Symbol]] = []
    hiddens, cells = [], []
    for place, back in enumerate(turned):
        direction = _Direction(conversion, place)
        hidden, cell = (_start(conversion, i, place, direction.size) for i in (5, 6))
        found = []
        for x in reversed(inputs) if back else inputs:
            new, cell = direction.step(x, hidden, cell)
            hidden = new
            found.append(new)
        rows.append(found[::-1] if back else found)
        hiddens.append(found[-1])
        if isinstance(cell, Symbol):
            cells.append(cell)
    size = len(turned), 1, direction.size
    whole = _stacked(conversion, [row[step] for step in range(steps) for row in rows], (steps, *size))
    return (whole, *(_stacked(conversion, each, size) for each in (hiddens, cells) if each))


def _step(conversion: Conversion, value: Symbol, step: int) -> Symbol:
    """One of the rows that stand along the first axis, (1, entries)."""
    row = conversion.call(python.getitem, conversion.apart(value), (slice(None), step), batched=False)
    return conversion.reshaped(row, (1, value.shape[2]))


def _start(conversion: Conversion, place: int, direction: int, size: int) -> Value:
    """The hidden values or cells (1, size) before the first step, zeros where none are given."""
    given = conversion.input(place) if conversion.current.op_type == "LSTM" or place == 5 else None
    if given is None:
        return np.zeros((1, size))
    return _step(conversion, given, direction) if isinstance(given, Symbol) else given[direction]


def _stacked(conversion: Conversion, parts: list[Symbol], shape: tuple[int, ...]) -> Symbol:
    """Values (1, size) one below the other, in a shape with as many entries."""
    joined = parts[0] if len(parts) == 1 else conversion.call(torch.cat, parts, 1, batched=True)
    return conversion.reshaped(joined, shape)
