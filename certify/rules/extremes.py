"""Largest and least entries over dimensions, and of two values or a value and a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certify.bounds import Interval
from certify.rules.activation import clamped
from certify.rules.arithmetic import NEGATED
from certify.rules.operation import Affine, Operation, broadcast_shape, check_enlarged, gathered, repeated
from certify.rules.selection import LargestOver
from certify.rules.table import Call, Constant, Step, Value, rule


@dataclass(frozen=True)
class Stack(Affine):
    """Values that may broadcast beside each other along a new dimension after the samples'."""

    copies = True

    def forward(self, *values: Tensor) -> Tensor:
        whole = broadcast_shape(values, "joined")
        check_enlarged(whole, max(value[0].numel() for value in values))
        return torch.stack([value.expand(-1, *whole) for value in values], 1)

    def interval(self, *inputs: Interval) -> Interval:
        lower = self.forward(*(value.lower for value in inputs))
        return Interval(lower, self.forward(*(value.upper for value in inputs)))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        if norm == "linf":
            return torch.stack(list(constants)).amax()
        whole = torch.broadcast_shapes(*shapes)
        often = [repeated(shape, whole) ** 0.5 for shape in shapes]
        return torch.stack([part * count for part, count in zip(constants, often, strict=True)]).norm()

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        return tuple(gathered(part, shape) for part, shape in zip(rows.unbind(2), shapes, strict=True))

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


def finds_places(target: Any, call: Call) -> bool:
    """Whether a call returns where its values were found beside them: max and min over one dimension."""
    over = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    return target in (torch.max, "max", torch.min, "min") and isinstance(over, int)


def _over(call: Call, value: Any, dims: Any, keep: Any, least: bool) -> Step:
    """The largest or `least` entries over dimensions."""
    places = tuple(dims) if isinstance(dims, tuple | list) else (dims,)
    if not places or 0 in places or not all(isinstance(dim, int) for dim in places):
        call.refuse("would mix samples: name dimensions >= 1")
    operation: Operation = LargestOver(places, bool(keep))
    return (NEGATED, operation, NEGATED) if least else operation, (call.value(value),)


def _of_two(call: Call, first: Any, second: Any, least: bool) -> Step | list[Step]:
    """The larger or lesser of two values, or of a value and a constant."""
    if not isinstance(first, Value):
        first, second = second, first
    if not isinstance(second, Value):
        return clamped(call, first, None, second) if least else clamped(call, first, second, None)
    larger: Operation = LargestOver((1,), False)
    both: Step = ((Stack(), NEGATED) if least else Stack(), (call.value(first), second.index))
    return [both, ((larger, NEGATED) if least else larger, (-1,))]


@rule(torch.amax, "amax", torch.amin, "amin")
def extreme(call: Call) -> Step:
    """The largest or least entry over dimensions after the samples'."""
    given = call.bind("input", dim=(), keepdim=False)
    return _over(call, given["input"], given["dim"], given["keepdim"], "amin" in call.name)


@rule(torch.max, "max", torch.min, "min")
def extreme_with_places(call: Call) -> Step | list[Step]:
    """The larger or lesser of two values, or the extreme entries over one dimension with their places."""
    least = "min" in call.name
    other = call.kwargs.get("other", call.args[1] if len(call.args) > 1 else None)
    if isinstance(other, Value | Constant | Tensor):
        given = call.bind("input", "other")
        return _of_two(call, given["input"], given["other"], least)
    given = call.bind("input", dim=(), keepdim=False)
    return _over(call, given["input"], given["dim"], given["keepdim"], least)


@rule(torch.maximum, "maximum", torch.clamp_min, "clamp_min", "clamp_min_")
def larger(call: Call) -> Step | list[Step]:
    """max(z, c), of two values or of a value and a constant."""
    return _of_two(call, *_two(call), least=False)


@rule(torch.minimum, "minimum", torch.clamp_max, "clamp_max", "clamp_max_")
def lesser(call: Call) -> Step | list[Step]:
    """min(z, c), of two values or of a value and a constant."""
    return _of_two(call, *_two(call), least=True)


def _two(call: Call) -> tuple[Any, Any]:
    if len(call.args) + len(call.kwargs) != 2:
        call.refuse("needs two arguments: a value, and a value or a constant")
    first, second = [*call.args, *call.kwargs.values()]
    return first, second


@rule(nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d, nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d)
def adaptive_max_pool(call: Call) -> Step:
    """Adaptive max pooling to one entry per channel."""
    module = call.module
    if isinstance(module, nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool1d):
        given = call.bind("input") | {
            "output_size": module.output_size, "return_indices": module.return_indices
        }  # fmt: skip
    else:
        given = call.bind("input", "output_size", return_indices=False)
    if given["return_indices"]:
        call.refuse("return_indices is not understood by the certificates")
    if given["output_size"] not in (1, (1,), [1], (1, 1), [1, 1]):
        call.refuse(f"an output size of {given['output_size']} is not understood by the certificates: use 1")
    flat = "1d" in (type(module).__name__ if module is not None else call.name)
    return LargestOver((-1,) if flat else (-2, -1), keep=True), (call.value(given["input"]),)
