"""A network as a list of operations, traced once with torch.fx; an unknown operation is refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

import certify.rules.activation
import certify.rules.arcs
import certify.rules.arithmetic
import certify.rules.attention
import certify.rules.choice
import certify.rules.comparison
import certify.rules.concatenation
import certify.rules.convex
import certify.rules.convolution
import certify.rules.curve
import certify.rules.extremes
import certify.rules.gated
import certify.rules.hinges
import certify.rules.jumps
import certify.rules.linear
import certify.rules.moments
import certify.rules.normalisation
import certify.rules.periodic
import certify.rules.pieces
import certify.rules.placement
import certify.rules.pooling
import certify.rules.power
import certify.rules.product
import certify.rules.shape
import certify.rules.sigmoidal
import certify.rules.softmax
import certify.rules.turning
import certify.rules.upsampling
import certify.rules.vector_norm
import certify.rules.volumes  # noqa: F401
from certify.constants import constant_of
from certify.encoders import COMPOSED
from certify.endings import without_log_softmax
from certify.gates import with_gates_named
from certify.rules.extremes import finds_places
from certify.rules.operation import Affine, Operation
from certify.rules.table import RULES, Call, Constant, Places, Several, Step, Value, WithPlaces
from models.base import Classifier
from models.errors import NotApplicable, UserError

IN_PLACE = {"iadd", "isub", "imul", "itruediv"}


@dataclass(frozen=True)
class Node:
    """Step i of a graph: an operation on the values of earlier steps. Step 0, the input, has none."""

    operation: Operation | None
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A network as a list of nodes in evaluation order; the last is the logits.

    `tail` are the affine nodes from which only affine ones lead to the logits, so that margins
    may be folded into them. Where it is `shifted` the network takes one more number from all logits of a
    sample, which keeps their margins. Operations read the network's own tensors: a graph stays valid while
    the network is trained.
    """

    nodes: tuple[Node, ...]
    tail: frozenset[int]
    _shapes: dict[torch.Size, list[torch.Size]] = field(default_factory=dict, compare=False)
    shifted: bool = False

    def values(self, x: Tensor) -> list[Tensor]:
        """Every node's value on inputs x (n, ...)."""
        values = [x]
        for node in self.nodes[1:]:
            assert node.operation is not None
            values.append(node.operation.forward(*(values[i] for i in node.inputs)))
        return values

    def shapes(self, x: Tensor) -> list[torch.Size]:
        """Every node's shape without the samples, for inputs like x."""
        if x.shape[1:] not in self._shapes:
            with torch.no_grad():
                self._shapes[x.shape[1:]] = [value.shape[1:] for value in self.values(x[:1])]
        return self._shapes[x.shape[1:]]

    def num_classes(self, x: Tensor) -> int:
        """The number of logits; raises UserError where the output is not (n, classes)."""
        shape = self.shapes(x)[-1]
        if len(shape) != 1:
            raise UserError(f"the network returns shape (n, {', '.join(map(str, shape))}), not logits")
        return shape[0]


class _Tracer(fx.Tracer):
    """Keeps PyTorch's own layers whole, those made of others excepted, and steps into everything else."""

    proxy_buffer_attributes = True

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if type(m) in COMPOSED and not m._forward_hooks and not m._forward_pre_hooks:
            return COMPOSED[type(m)](m, *args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential):
            return False
        return parametrize.is_parametrized(m) or type(m).__module__.startswith("torch.nn.")


def trace(network: nn.Module, *, margins: bool = False, like: Tensor | None = None) -> Graph:
    """The operations of `network`, any nn.Module from inputs (n, ...) to logits (n, classes).

    For who asks for `margins` alone, a log-softmax over the classes is left out at the end. A network that
    asks for sizes of its values is traced for inputs `like` (n, ...), in their shape and type. The graph
    refers to the network's tensors; nothing of the network changes. Raises UserError, naming the
    operation, where one is not understood or the program's flow depends on the data.
    """
    while isinstance(network, Classifier):
        network = network.network
    root = network if not _is_layer(network) else nn.Sequential(network)
    attributes, random_state = set(vars(root)), torch.get_rng_state()
    try:
        traced = _traced(root, type(network).__name__)
        if not torch.equal(random_state, torch.get_rng_state()):
            raise NotApplicable(f"'{type(network).__name__}' draws random numbers: no proof applies to it")
        shifted = margins and without_log_softmax(traced, root)
        return replace(_Builder(root, set(vars(root)) - attributes, like).build(traced), shifted=shifted)
    finally:
        torch.set_rng_state(random_state)
        for name in set(vars(root)) - attributes:
            delattr(root, name)


def _traced(root: nn.Module, name: str) -> fx.Graph:
    try:
        return with_gates_named(_Tracer().trace(root), root)
    except Exception as error:
        # The user's own forward runs on proxies here, and may fail in any way.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, fx.proxy.TraceError) or "in symbolic tracing" in reason:
            # The tracer's own errors go on with advice to those who call it.
            reason = reason.split(". ")[0]
        raise NotApplicable(f"the certificates cannot trace '{name}': {reason}") from error


def _is_layer(network: nn.Module) -> bool:
    return type(network) in RULES or type(network) in COMPOSED or parametrize.is_parametrized(network)


class _Builder:
    """Turns fx nodes into operations."""

    def __init__(self, root: nn.Module, added: set[str], like: Tensor | None) -> None:
        self.root = root
        self.added = added
        self.like = like
        self.nodes = [Node(None, ())]
        self.known: dict[fx.Node, Any] = {}

    def build(self, traced: fx.Graph) -> Graph:
        for node in traced.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                result = self._argument(node.args[0])
            elif node.op == "get_attr":
                self.known[node] = Constant(self._attribute(str(node.target)))
            else:
                self.known[node] = self._call(node)
        if not isinstance(result, Value):
            raise NotApplicable("the network's output is not one tensor of logits that depends on the input")
        nodes = tuple(self.nodes[: result.index + 1])
        return Graph(nodes, _tail(nodes))

    def _placeholder(self, node: fx.Node) -> None:
        if any(isinstance(value, Value) for value in self.known.values()):
            if node.args:
                self.known[node] = node.args[0]
                return
            raise NotApplicable("the certificates understand networks with one input")
        self.known[node] = Value(0)

    def _attribute(self, path: str) -> Callable[[], Any]:
        if path in self.added:
            # fx keeps a tensor made while tracing on the root, which must stay as it was.
            value = getattr(self.root, path)
            return lambda: value
        *modules, name = path.split(".")
        owner = self.root.get_submodule(".".join(modules))
        return lambda: getattr(owner, name)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.known[argument]
        if isinstance(argument, tuple | list):
            return type(argument)(self._argument(part) for part in argument)
        return argument

    def _call(self, node: fx.Node) -> Any:
        args = tuple(self._argument(argument) for argument in node.args)
        kwargs = {name: self._argument(argument) for name, argument in node.kwargs.items()}
        if args and isinstance(args[0], WithPlaces) and node.target in (getattr, operator.getitem):
            return args[0].value if args[1] in ("values", 0) else Places()
        known = constant_of(node, args, kwargs, self._sizes)
        if known is not None:
            return known
        if (
            args
            and isinstance(args[0], Several)
            and node.target is operator.getitem
            and isinstance(args[1], int)
        ):
            # Unpacking asks for every part, also for those that nobody uses.
            return self._append(args[0].part(args[1])) if node.users else Places()
        module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        call = Call(_name(node, module), module, args, kwargs)
        target = _layer(call) if module is not None else node.target
        if target not in RULES:
            call.refuse("this operation is not understood by the certificates")
        if _changes_its_input(node, module) and len(node.all_input_nodes[0].users) > 1:
            call.refuse("changes in place a value that is used elsewhere: make it out of place")
        steps = RULES[target](call)
        if isinstance(steps, Several):
            return steps
        value = self._append(steps if isinstance(steps, list) else [steps])
        return WithPlaces(value) if finds_places(target, call) else value

    def _sizes(self, value: Value) -> torch.Size:
        """A value's shape without the samples; raises NotApplicable where no input's is known."""
        if self.like is None:
            raise NotApplicable("asks for the size of a value: write the number")
        with torch.no_grad():
            return Graph(tuple(self.nodes), frozenset()).values(self.like[:1])[value.index].shape[1:]

    def _append(self, steps: list[Step]) -> Value:
        results: list[int] = []
        for operations, inputs in steps:
            inputs = tuple(place if place >= 0 else results[place] for place in inputs)
            for operation in operations if isinstance(operations, tuple) else (operations,):
                self.nodes.append(Node(operation, inputs))
                inputs = (len(self.nodes) - 1,)
            results.append(len(self.nodes) - 1)
        return Value(len(self.nodes) - 1)


def _name(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return f"layer '{node.target}' ({type(module).__name__})"
    target = node.target
    return f"operation '{target if isinstance(target, str) else getattr(target, '__name__', target)}'"


def _layer(call: Call) -> type:
    """The class whose rule applies: subclasses and hooks may compute something else, so they have none."""
    module = call.module
    assert module is not None
    if module._forward_pre_hooks or module._forward_hooks:
        call.refuse("has forward hooks, which the certificates cannot see: use a parametrization instead")
    parametrized = parametrize.is_parametrized(module)
    return type(module).__mro__[1] if parametrized else type(module)


def _changes_its_input(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    underscored = name.endswith("_") and not name.endswith("__")
    return bool(node.kwargs.get("inplace", False)) or underscored or name in IN_PLACE


def _tail(nodes: tuple[Node, ...]) -> frozenset[int]:
    users: dict[int, list[int]] = {i: [] for i in range(len(nodes))}
    for i, node in enumerate(nodes):
        for j in node.inputs:
            users[j].append(i)
    tail: set[int] = set()
    for i in reversed(range(1, len(nodes))):
        if isinstance(nodes[i].operation, Affine) and all(user in tail for user in users[i]):
            tail.add(i)
    return frozenset(tail)
