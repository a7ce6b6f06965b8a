"""Comparisons that remember what they compare, so that a derivative can be averaged across them.

A network that asks whether an entry is above a level (thermometer codes, stumps, masks) has no gradient
there: the answer is a bool. Here the bool carries the difference of its two sides, and where it becomes a
number, by a cast, a product, a choice or a fill, that number is a step function of the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Step = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]

ABOVE = {torch.gt, Tensor.gt, Tensor.__gt__, torch.ge, Tensor.ge, Tensor.__ge__}
BELOW = {torch.lt, Tensor.lt, Tensor.__lt__, torch.le, Tensor.le, Tensor.__le__}
STRICT = {torch.gt, Tensor.gt, Tensor.__gt__, torch.lt, Tensor.lt, Tensor.__lt__}
EQUAL = {torch.eq, Tensor.eq, Tensor.__eq__}
NOT = {torch.logical_not, Tensor.logical_not, Tensor.__invert__, torch.bitwise_not, Tensor.bitwise_not}
BOTH = {torch.logical_and, Tensor.logical_and, Tensor.__and__, torch.bitwise_and, Tensor.bitwise_and}
EITHER = {torch.logical_or, Tensor.logical_or, Tensor.__or__, torch.bitwise_or, Tensor.bitwise_or}
SHAPES = {
    torch.flatten, Tensor.flatten, torch.reshape, Tensor.reshape, Tensor.view, torch.permute, Tensor.permute,
    torch.transpose, Tensor.transpose, torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze,
    Tensor.contiguous, Tensor.expand, Tensor.__getitem__,
}  # fmt: skip
CASTS = {Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type, Tensor.type_as}
PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
CHOICES = {torch.where, Tensor.where}
FILLS = {torch.masked_fill, Tensor.masked_fill}


class Sloped(torch.autograd.Function):
    """The value `out`, of which `slope` is the derivative towards `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.saved_tensors[0], None, None


def straight(x: Tensor, out: Tensor, share: float = 1.0) -> Tensor:
    """The value `out`, that moves as a `share` of x does; right too where nothing can be detached."""
    return sloped(x, out, torch.full_like(x, share))


def sloped(x: Tensor, out: Tensor, slope: Tensor) -> Tensor:
    """The value `out`, of which `slope` is the derivative towards x, and which depends on nothing else."""
    with torch._C.DisableTorchFunction():  # An attack may have made cuts void (attacks.withheld).
        out, slope = out.detach(), slope.detach()
    moved: Tensor = Sloped.apply(x, out, slope)
    return moved


SLOPED: type = Sloped._backward_cls


@dataclass(frozen=True)
class Sides:
    """What a bool stands for: difference > 0, or >= 0 where it is not `strict`."""

    difference: Tensor
    strict: bool

    def holds(self, difference: Tensor) -> Tensor:
        """The bool at another difference."""
        return difference > 0 if self.strict else difference >= 0


def sides(value: Any) -> Sides | None:
    """What a tensor remembers of the comparison that it comes from."""
    return getattr(value, "_sides", None) if isinstance(value, Tensor) and value.dtype is torch.bool else None


def remembered(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The result of a comparison, or of a bool's negation, junction or new shape, with sides; else None."""
    if func in ABOVE or func in BELOW:
        first, second = args[0], args[1] if len(args) > 1 else kwargs.get("other")
        if not any(map(_real, (first, second))) or not all(
            isinstance(one, Tensor | float | int) for one in (first, second)
        ):
            return None
        difference = first - second if func in ABOVE else second - first
        return _with(func(*args, **kwargs), Sides(difference, func in STRICT))
    if func in EQUAL and len(args) == 2 and all(map(_real, args)):
        # Only entry by entry: a table of examples to compare with may be as large as memory.
        out = func(*args)
        if args[0].shape == out.shape:
            return _with(out, Sides(-(args[0] - args[1]).abs(), False))
        return out
    own = sides(args[0]) if args else None
    if own is None:
        return None
    if func in NOT:
        return _with(func(*args, **kwargs), Sides(-own.difference, not own.strict))
    if func in SHAPES:
        return _with(func(*args, **kwargs), Sides(func(own.difference, *args[1:], **kwargs), own.strict))
    other = sides(args[1]) if len(args) > 1 and (func in BOTH or func in EITHER) else None
    if other is None:
        return None
    # Where one side is strict and the other is not, ties alone are misjudged, and only beside the true value.
    join = torch.minimum if func in BOTH else torch.maximum
    return _with(func(*args), Sides(join(own.difference, other.difference), own.strict))


def _with(result: Tensor, found: Sides) -> Tensor:
    result._sides = found  # type: ignore[attr-defined]
    return result


def numbers(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], step: Step) -> Tensor | None:
    """The result of a call that makes numbers of a remembered bool, differentiable by `step`; else None.

    step(apply, difference) is apply(difference) with a derivative.
    """
    if func in CASTS and sides(args[0]):
        out = func(*args, **kwargs)
        return _as_step(args[0], out.dtype, step) if out.is_floating_point() else None
    if func in PRODUCTS and len(args) == 2:
        found = [sides(one) for one in args]
        if found[0] is not None and found[1] is None and _real(args[1]):
            return _as_step(args[0], args[1].dtype, step) * args[1]
        if found[1] is not None and found[0] is None and _real(args[0]):
            return args[0] * _as_step(args[1], args[0].dtype, step)
        return None
    if func in CHOICES and len(args) == 3:
        first, second = (args[1], args[2]) if func is torch.where else (args[0], args[2])
        return _choice(args[0] if func is torch.where else args[1], first, second, step)
    if func in FILLS and len(args) == 3:
        return _choice(args[1], args[2], args[0], step)
    return None


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _as_step(condition: Tensor, dtype: torch.dtype, step: Step) -> Tensor:
    """The condition as 0 and 1, differentiable towards the difference of its sides; the value is its own."""
    own = sides(condition)
    assert own is not None
    difference = own.difference

    def apply(z: Tensor) -> Tensor:
        return (condition if z is difference else own.holds(z)).to(dtype)

    return step(apply, difference)


def _choice(condition: Any, first: Any, second: Any, step: Step) -> Tensor | None:
    """`first` where the condition holds, else `second`, with a derivative through the condition too."""
    if sides(condition) is None:
        return None
    chosen = torch.where(condition, first, second)
    if not chosen.is_floating_point():
        return None
    soft = _as_step(condition, chosen.dtype, step).expand_as(chosen)
    with torch.no_grad():
        gain = torch.as_tensor(first) - torch.as_tensor(second)
        finite = torch.where(torch.isfinite(gain), gain, 0.0).to(chosen).expand_as(chosen)
    return chosen + sloped(soft, torch.zeros_like(chosen), finite)
