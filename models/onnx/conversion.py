"""Builds a torch.fx graph from ONNX operators, one sample a time in ONNX and many in PyTorch."""

from __future__ import annotations

import operator as python
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, fx, nn

from models.errors import NotApplicable


@dataclass(frozen=True)
class Symbol:
    """A value that depends on the input: its place in the graph and an example of it.

    In PyTorch the samples are always dimension 0; example is (1, ...). In ONNX they are axis 0, of
    size 1, where `batched`, and no axis at all otherwise.
    """

    node: fx.Node
    example: Tensor
    batched: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the ONNX file gives this value."""
        return tuple(self.example.shape if self.batched else self.example.shape[1:])


Known = np.ndarray | Symbol | None


class Conversion:
    """The graph so far. Operators read the current node through `input`, `attribute` and `option`."""

    def __init__(self, dtype: torch.dtype, opsets: dict[str, int]) -> None:
        self.dtype = dtype
        self.opsets = opsets
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.values: dict[str, Known] = {"": None}
        self.current = NodeProto()

    def placeholder(self, name: str, shape: tuple[int, ...], batched: bool) -> None:
        """Declares the network's input; shape lacks the samples."""
        example = torch.full((1, *shape), 0.5, dtype=self.dtype)
        self.values[name] = Symbol(self.graph.placeholder("x"), example, batched)

    def refuse(self, reason: str) -> NoReturn:
        """Raises NotApplicable, naming the current operator."""
        name = self.current.name or ", ".join(self.current.output)
        raise NotApplicable(f"ONNX operator {self.current.op_type} ('{name}') {reason}")

    def convert(self, node: NodeProto) -> None:
        """Adds one ONNX node: folded where nothing depends on the input, else by its operator's rule."""
        self.current = node
        missing = [name for name in node.input if name not in self.values]
        if missing:
            self.refuse(f"reads '{missing[0]}', which nothing before it makes")
        inputs = [self.values[name] for name in node.input]
        within = any(attribute.HasField("g") for attribute in node.attribute)
        if not within and not any(isinstance(value, Symbol) for value in inputs):
            results: Sequence[Known] = self.folded(inputs)
        else:
            own = node.domain in ("", "ai.onnx")
            rule = OPERATORS.get(node.op_type if own else f"{node.domain}:{node.op_type}")
            if rule is None:
                self.refuse(f"of domain '{node.domain or 'ai.onnx'}' is not understood")
            try:
                found = rule(self)
            except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
                self.refuse(f"is malformed: {(str(error) or type(error).__name__).splitlines()[0]}")
            results = found if isinstance(found, tuple) else (found,)
        self.values.update(zip(node.output, results, strict=False))

    def folded(self, inputs: Sequence[Known]) -> list[np.ndarray]:
        """What ONNX's own evaluator makes of the current node on constants."""
        names = [name for name in self.current.input if name]
        given = {name: value for name, value in zip(self.current.input, inputs, strict=True) if name}
        empty = helper.make_tensor_value_info
        node = self.current
        if node.domain == "com.microsoft" and node.op_type == "DequantizeLinear":
            # onnxruntime's, for types that older opsets lack.
            node = NodeProto()
            node.CopyFrom(self.current)
            node.domain = ""
        graph = helper.make_graph(
            [node],
            "constant",
            [
                empty(name, helper.np_dtype_to_tensor_dtype(np.asarray(given[name]).dtype), None)
                for name in dict.fromkeys(names)
            ],
            [empty(name, onnx.TensorProto.UNDEFINED, None) for name in self.current.output if name],
        )
        versions = dict(self.opsets)
        if self.current.op_type == "DequantizeLinear":
            # The evaluator knows it from here on alone, and older ones mean the same.
            versions[""] = max(versions.get("", 1), 21 if self.current.domain else 19)
        opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
        try:
            found = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, given)
        except Exception as error:
            # ONNX's own evaluator may fail on constants in any way.
            self.refuse(f"cannot be evaluated on constants: {(str(error) or 'unknown').splitlines()[0]}")
        return [np.asarray(value) for value in found]

    def input(self, place: int) -> Known:
        """The value at a place of the current node's inputs, None where it is left out."""
        return self.values[self.current.input[place]] if place < len(self.current.input) else None

    def symbol(self, place: int = 0) -> Symbol:
        """The input at a place, which must depend on the network's input."""
        value = self.input(place)
        if not isinstance(value, Symbol):
            self.refuse(f"has a constant as input {place}, where only a value of the network is understood")
        return value

    def fixed(self, place: int) -> np.ndarray:
        """The input at a place, which must be constant."""
        value = self.input(place)
        if not isinstance(value, np.ndarray):
            self.refuse(f"has no constant as input {place}, which is not understood")
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the current node, tensors as arrays."""
        for attribute in self.current.attribute:
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                if isinstance(value, bytes):
                    return value.decode()
                return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        return default

    def option(self, name: str, place: int, default: Any = None) -> Any:
        """A setting that newer opsets give as a constant input and older ones as an attribute."""
        value = self.attribute(name)
        if value is None and self.input(place) is not None:
            value = self.fixed(place).tolist()
        return default if value is None else value

    def tensor(self, value: np.ndarray) -> Tensor:
        """A constant in the network's dtype."""
        return torch.from_numpy(np.array(value)).to(self.dtype)

    def keep(self, value: Tensor) -> fx.Node:
        """A constant kept with the network."""
        name = f"constant_{sum(1 for _ in self.root.buffers())}"
        self.root.register_buffer(name, value)
        return self.graph.get_attr(name)

    def call(
        self, function: Callable[..., Tensor], *arguments: Any, batched: bool | None = None, **settings: Any
    ) -> Symbol:
        """function(*arguments, **settings): Symbols, Tensors to be kept and plain values as arguments."""
        nodes = tuple(self._node(argument) for argument in arguments)
        examples = [_example(argument) for argument in arguments]
        result = self._computed(lambda: function(*examples, **settings))
        first = next((argument for argument in arguments if isinstance(argument, Symbol)), None)
        if batched is None:
            batched = first is not None and first.batched
        return Symbol(self.graph.call_function(function, nodes, dict(settings)), result, batched)

    def first(self, function: Callable[..., Any], value: Symbol, *settings: Any) -> Symbol:
        """The first of the several tensors that function(value, *settings) returns."""
        result = self._computed(lambda: function(value.example, *settings)[0])
        several = self.graph.call_function(function, (value.node, *settings))
        return Symbol(self.graph.call_function(python.getitem, (several, 0)), result, value.batched)

    def _node(self, argument: Any) -> Any:
        if isinstance(argument, list) and argument and isinstance(argument[0], Symbol):
            return [value.node for value in argument]
        if isinstance(argument, Symbol):
            return argument.node
        return self.keep(argument) if isinstance(argument, Tensor) else argument

    def layer(self, module: nn.Module, value: Symbol) -> Symbol:
        """A layer with its weights, named after its place in the file."""
        module = module.to(self.dtype).eval().requires_grad_(False)
        name = f"{type(module).__name__.lower()}_{len(self.root._modules)}"
        self.root.add_module(name, module)
        result = self._computed(lambda: module(value.example))
        return Symbol(self.graph.call_module(name, (value.node,)), result, value.batched)

    def _computed(self, compute: Callable[[], Tensor]) -> Tensor:
        try:
            with torch.no_grad():
                return compute()
        except (RuntimeError, IndexError, ValueError) as error:
            self.refuse(f"does not fit its input: {str(error).splitlines()[0]}")

    def reshaped(self, value: Symbol, shape: Sequence[int]) -> Symbol:
        """The same entries in the same order under another ONNX shape."""
        batched = len(shape) > 1 and shape[0] == 1
        rest = tuple(shape[1:] if batched else shape)
        if rest == tuple(value.example.shape[1:]):
            return Symbol(value.node, value.example, batched)
        return self.call(torch.reshape, value, (-1, *rest), batched=batched)

    def apart(self, value: Symbol) -> Symbol:
        """The same value whose first ONNX axis, if it was the samples', is one like any other."""
        return self.call(torch.unsqueeze, value, 1, batched=False) if value.batched else value

    def with_samples(self, value: Symbol, rank: int) -> Symbol:
        """`value` with ONNX axis 0 as its samples and `rank` axes in all."""
        value = value if value.batched else self.reshaped(value, value.shape)
        if not value.batched or len(value.shape) != rank:
            self.refuse(f"is understood on values of {rank} axes whose first has size 1, not {value.shape}")
        return value

    def dimension(self, value: Symbol, axis: int) -> int:
        """The PyTorch dimension of an ONNX axis; the samples' axis is refused."""
        rank = len(value.shape)
        place = axis % rank if -rank <= axis < rank else self.refuse(f"has no axis {axis}")
        if value.batched and place == 0:
            self.refuse("works along the axis of the samples, which is not understood")
        return place if value.batched else place + 1


def _example(argument: Any) -> Any:
    if isinstance(argument, list) and argument and isinstance(argument[0], Symbol):
        return [value.example for value in argument]
    return argument.example if isinstance(argument, Symbol) else argument


Rule = Callable[[Conversion], "Known | tuple[Known, ...]"]
OPERATORS: dict[str, Rule] = {}


def operator(*names: str) -> Callable[[Rule], Rule]:
    """Registers the decorated rule for ONNX operators, of the default domain or as DOMAIN:OPERATOR."""

    def decorate(rule: Rule) -> Rule:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"two rules for ONNX operator {name}")
            OPERATORS[name] = rule
        return rule

    return decorate
