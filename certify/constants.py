"""What a traced call returns without running: functions of the network's own tensors, sizes and numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from certify.rules.table import BatchSize, Constant, Value

# Functions of the network's own tensors that may be evaluated again at each use.
FOLDABLE = {
    operator.getitem, operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, getattr,
}  # fmt: skip
FOLDABLE_METHODS = {
    "view", "reshape", "unsqueeze", "sqrt", "to", "float", "t", "transpose", "permute", "expand", "repeat",
}  # fmt: skip
# These take the samples' number first, and one sample of a constant stands for all.
REPEATING = {"expand", "repeat"}

# Where arithmetic on numbers is from.
PYTHON = {"_operator", "builtins", "math"}

Sizes = Callable[[Value], torch.Size]


@dataclass(frozen=True)
class Shape:
    """Stands for the shape of a value."""

    value: Value


def constant_of(
    node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], sizes: Sizes
) -> Constant | BatchSize | Shape | int | tuple[int, ...] | bool | None:
    """What a call returns that needs no value of the network, None for every other call.

    sizes tells the shape without samples of a value, or raises NotApplicable.
    """
    if not args:
        return None
    if isinstance(args[0], Value) and (
        (node.target is getattr and args[1] == "shape") or (node.target == "size" and len(args) == 1)
    ):
        return Shape(args[0])
    if isinstance(args[0], Value) and node.target == "size":
        return _size(Shape(args[0]), args[1], sizes)
    if isinstance(args[0], Value) and node.target in ("dim", "ndimension"):
        return len(sizes(args[0])) + 1
    if isinstance(args[0], Shape) and node.target is operator.getitem:
        return _size(args[0], args[1], sizes)
    if (
        node.op == "call_function"
        and not kwargs
        and all(isinstance(part, int | float | str) for part in args)
    ):
        return _number(node, args)
    return _folded(node, args, kwargs) if _folds(node, args, kwargs) else None


def _size(shape: Shape, index: Any, sizes: Sizes) -> BatchSize | int | tuple[int, ...]:
    if index == 0 and isinstance(index, int):
        return BatchSize()
    whole = (BatchSize(), *sizes(shape.value))
    return whole[index]


def _number(node: fx.Node, args: tuple[Any, ...]) -> Any:
    """What Python makes of numbers; nothing of what PyTorch does, which may be random."""
    if node.target is torch._assert:
        return True
    if callable(node.target) and getattr(node.target, "__module__", "") in PYTHON:
        return node.target(*args)
    return None


def _folds(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    allowed = node.target in (FOLDABLE if node.op == "call_function" else FOLDABLE_METHODS)
    if not allowed or not any(isinstance(argument, Constant) for argument in args):
        return False
    repeats = node.op == "call_method" and node.target in REPEATING and len(args) > 1
    rest = [*args[:1], *args[2:]] if repeats and isinstance(args[1], BatchSize) else list(args)
    return not any(isinstance(part, Value | BatchSize | Shape) for part in [*rest, *kwargs.values()])


def _folded(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Constant:
    def read(part: Any) -> Any:
        return part.read() if isinstance(part, Constant) else 1 if isinstance(part, BatchSize) else part

    def evaluate() -> Any:
        values = [read(part) for part in args]
        named = {name: read(part) for name, part in kwargs.items()}
        if callable(node.target):
            return node.target(*values, **named)
        return getattr(values[0], str(node.target))(*values[1:], **named)

    return Constant(evaluate)
