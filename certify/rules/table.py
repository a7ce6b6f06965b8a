"""Which operation stands for which call of PyTorch; a call that is not here is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from certify.rules.operation import Operation
from models.errors import NotApplicable

REQUIRED = object()


@dataclass(frozen=True)
class Value:
    """The value of step `index` of the graph."""

    index: int


@dataclass(frozen=True)
class Constant:
    """A tensor of the network (parameter, buffer, attribute), read at each use."""

    read: Callable[[], Any]


@dataclass(frozen=True)
class WithPlaces:
    """What max over a dimension returns: a value of the network, and its Places."""

    value: Value


class Places:
    """Where extreme entries were found: integers that depend on the input."""


@dataclass(frozen=True)
class Several:
    """Values that a call returns together, or a value whose first dimension is to be picked from.

    `part` makes the steps of the one at an index.
    """

    part: Callable[[int], list[Step]]


class BatchSize:
    """Stands for the number of samples where a network asks for it."""


@dataclass(frozen=True)
class Call:
    """One call in a traced network: of a module, a function or a method.

    `name` is how errors name it; args hold Value, Constant, BatchSize and plain Python values.
    """

    name: str
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def refuse(self, reason: str) -> NoReturn:
        """Raises UserError that names the operation."""
        raise NotApplicable(f"{self.name}: {reason}")

    def bind(self, *required: str, **defaults: Any) -> dict[str, Any]:
        """The arguments by name, in the order of the signature; unknown ones are refused."""
        names = [*required, *defaults]
        if len(self.args) > len(names) or not set(self.kwargs) <= set(names):
            self.refuse(f"takes arguments beyond {', '.join(names)}, which are not understood")
        bound = {**dict.fromkeys(required, REQUIRED), **defaults}
        bound.update(zip(names, self.args, strict=False))
        bound.update(self.kwargs)
        if any(bound[name] is REQUIRED for name in required):
            self.refuse(f"needs the arguments {', '.join(required)}")
        return bound

    def value(self, argument: Any) -> int:
        """The graph's index of an argument that must be a value of the network."""
        if isinstance(argument, Several):
            self.refuse("takes several values at once, or one whose samples are not first: pick one first")
        if not isinstance(argument, Value):
            self.refuse("is applied to something else than a value of the network")
        return argument.index

    def constant(self, argument: Any) -> Callable[[], Any]:
        """Reads an argument that must not depend on the input."""
        if isinstance(argument, Constant):
            return argument.read
        if isinstance(argument, Value | BatchSize | WithPlaces | Places | Several):
            self.refuse("has an argument that depends on the input where a constant is needed")
        return lambda: argument


# One operation on earlier steps, or several of which each takes the one before.
Step = tuple[Operation | tuple[Operation, ...], tuple[int, ...]]
# In a list of steps a negative input counts back over the results of those before it.
Rule = Callable[[Call], "Step | list[Step] | Several"]
RULES: dict[Any, Rule] = {}


@dataclass(frozen=True)
class Made:
    """The result of one of the `Plan`'s steps."""

    number: int


@dataclass(frozen=True)
class Plan:
    """A list of steps under way: each names its inputs by what `add` gave, or by steps of the graph."""

    steps: list[Step] = field(default_factory=list)

    def add(self, operations: Operation | tuple[Operation, ...], *inputs: int | Made) -> Made:
        """One more step; returns its result."""
        count = len(self.steps)
        places = tuple(part.number - count if isinstance(part, Made) else part for part in inputs)
        self.steps.append((operations, places))
        return Made(count)


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Registers the decorated rule for module classes, functions and method names."""

    def decorate(build: Rule) -> Rule:
        for target in targets:
            if target in RULES:
                raise ValueError(f"two rules for {target}")
            RULES[target] = build
        return build

    return decorate


def pair(value: Any) -> tuple[int, int]:
    """An int or a pair as a pair."""
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def dims_of(call: Call, dim: Any) -> tuple[int, ...]:
    """One or several dimensions after the samples'; others are refused."""
    dims = tuple(dim) if isinstance(dim, tuple | list) else (dim,)
    if not all(isinstance(part, int) and part != 0 for part in dims):
        call.refuse("would mix samples: name dimensions >= 1")
    return dims


def like(constant: Any, values: Tensor) -> Tensor:
    """A number or tensor in the dtype and on the device of `values`."""
    return torch.as_tensor(constant, device=values.device, dtype=values.dtype)
