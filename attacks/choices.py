"""Whole numbers that remember where they come from, so that gradients reach what chose them.

The place of the largest score, the nearest neighbours, a colour's level: networks turn such numbers into
votes, one-hot codes and rows of a table, and no gradient comes back. Here a place carries the softmax of the
scores that it was chosen by, and what is looked up with it the average under that softmax (straight through,
Athalye et al. 2018, 1802.00420, section 4.1). A level carries the entry that it is a step function of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attacks.thresholds import straight

Function = Callable[..., Any]

BEST = {torch.argmax: 1, Tensor.argmax: 1, torch.argmin: -1, Tensor.argmin: -1}
EXTREMES = {torch.max: 1, Tensor.max: 1, torch.min: -1, Tensor.min: -1}
SORTED = {torch.topk, Tensor.topk, torch.sort, Tensor.sort, torch.argsort, Tensor.argsort}
ORDERS = {torch.argsort, Tensor.argsort}
VIEWS = {torch.squeeze, Tensor.squeeze, torch.unsqueeze, Tensor.unsqueeze, Tensor.__getitem__, torch.stack}
SCATTERS = {torch.scatter, Tensor.scatter, Tensor.scatter_}
LEVELS = {Tensor.long, Tensor.int, Tensor.short, Tensor.char, Tensor.byte, Tensor.to, Tensor.type}
ARITHMETIC = {
    torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.add, Tensor.add, Tensor.__add__,
    Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, torch.div, Tensor.div,
    Tensor.__truediv__, Tensor.float, Tensor.double, Tensor.half, Tensor.long, Tensor.int, Tensor.to,
    Tensor.type, Tensor.type_as,
}  # fmt: skip
ENTRYWISE = ARITHMETIC | {
    Tensor.__floordiv__, torch.floor_divide, Tensor.floor_divide, Tensor.__mod__, torch.remainder,
    Tensor.remainder, Tensor.__and__, Tensor.__or__, Tensor.__xor__, Tensor.__lshift__, Tensor.__rshift__,
    torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor, torch.bitwise_left_shift,
    torch.bitwise_right_shift, torch.clamp, Tensor.clamp,
}  # fmt: skip
LINEAR = ARITHMETIC | {
    torch.sum, Tensor.sum, torch.stack, torch.cat, Tensor.__getitem__, torch.flatten, Tensor.flatten,
    Tensor.reshape, Tensor.view, Tensor.permute, Tensor.transpose,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A place (...) chosen among k scores: the softmax (..., k) of these, and the scores of a whole order."""

    weights: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Level:
    """A whole number of each entry: apply(entries)."""

    apply: Callable[[Tensor], Tensor]
    entries: Tensor


@dataclass(frozen=True)
class Straight:
    """How derivatives pass: step(apply, entries) is apply(entries) with one; `relaxed` hands on averages.

    leaky: masks of several entries have one too, for gradients that are zero otherwise.
    """

    step: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
    relaxed: bool = False
    leaky: bool = False

    def twin(self, hard: Tensor, soft: Tensor) -> Tensor:
        """The value of `hard` with the derivative of `soft`; remembered where it is a whole number."""
        if not hard.is_floating_point():
            return _with(hard, Votes(soft))
        soft = soft.to(hard.dtype)
        return soft if self.relaxed else straight(soft, hard)


@dataclass(frozen=True)
class Votes:
    """Whole numbers for which `soft`, of the same shape, stands where a derivative is wanted."""

    soft: Tensor


def source(value: Any) -> Place | Level | Votes | None:
    """What a tensor of whole numbers remembers of where it comes from."""
    return getattr(value, "_source", None) if isinstance(value, Tensor) else None


def chosen(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], how: Straight) -> Any:
    """The result of a call that makes or takes whole numbers with a source; None where it does neither.

    Values are those of the call itself unless relaxed.
    """
    first = args[0]
    if isinstance(first, Tensor) and first.is_floating_point():
        made = _made(func, args, kwargs)
        if made is not None:
            return made
    if func is Tensor.__setitem__:
        return _assigned(args)
    if func in SCATTERS and len(args) == 4 and isinstance(source(args[2]), Place):
        return _scattered(func, args, how)
    if func in (torch.stack, torch.cat) and isinstance(first, list | tuple):
        return _joined(func, args, kwargs, how)
    if func is functional.embedding or func is Tensor.__getitem__:
        table, place = (args[1], first) if func is functional.embedding else (first, args[1])
        if isinstance(table, Tensor) and source(place) is not None:
            return _looked_up(table, place, how)
    for number, value in enumerate(args):
        if (own := source(value)) is not None:
            return _taken(func, args, kwargs, number, own, how)
    return None


def _made(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Whole numbers made of floating ones."""
    x, rest = args[0], args[1:]
    if func is torch.bucketize:
        return _with(func(*args, **kwargs), Level(lambda z: func(z, *rest, **kwargs), x))
    if func is torch.searchsorted and x.dim() == 1 and isinstance(rest[0], Tensor):
        return _with(func(*args, **kwargs), Level(lambda z: func(x, z, *rest[1:], **kwargs), rest[0]))
    if func in LEVELS:
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or out.is_floating_point() or out.dtype is torch.bool:
            return None
        # A window may reach beyond what the type can hold, where values would start again.
        least, most = max(torch.iinfo(out.dtype).min, -(2**24)), min(torch.iinfo(out.dtype).max, 2**24)
        return _with(out, Level(lambda z: func(z.clamp(least, most), *args[1:], **kwargs), x))
    sign = BEST.get(func, EXTREMES.get(func, 1))
    if not (func in BEST or func in EXTREMES or func in SORTED):
        return None
    least = kwargs.get("largest") is False
    out = func(*args, **kwargs)
    place = out if isinstance(out, Tensor) else out[1]
    if place.is_floating_point() or not place.dim() or place.dim() < x.dim() - 1:
        return out
    named = args[2:] if func in (torch.topk, Tensor.topk) else args[1:]
    axis = kwargs.get("dim", named[0] if named else -1)
    axis = (-1 if axis is None else axis) % x.dim()
    weights = softened(-sign * x if least else sign * x, axis).movedim(axis, -1)
    if place.dim() == x.dim():
        weights = weights.unsqueeze(axis).expand(*place.shape, -1)
    down = kwargs.get("descending", len(args) > 2 and bool(args[2]))
    _with(place, Place(weights, (-x if down else x) if func in ORDERS else None))
    return out


def softened(scores: Tensor, axis: int) -> Tensor:
    """Softmax of scores in units of their own spread, so that none of them is out of reach."""
    unit = scores.detach().nan_to_num(0.0, 0.0, 0.0).std(axis, keepdim=True).clamp(min=1e-12)
    return (scores / unit).softmax(axis)


def _with(result: Tensor, found: Place | Level | Votes) -> Tensor:
    result._source = found  # type: ignore[attr-defined]
    return result


def _looked_up(table: Tensor, place: Tensor, how: Straight) -> Tensor | None:
    """Rows of a table (k, ...) at places or levels (...)."""
    own, hard = source(place), table[place]
    if isinstance(own, Level):
        return _of_level(lambda z: table[z.long().clamp(0, len(table) - 1)], hard, own, how)
    if not isinstance(own, Place) or own.weights.shape[-1] > len(table) or hard.dtype is torch.bool:
        return None
    rows = table[: own.weights.shape[-1]]
    if not table.is_floating_point() and table.dim() == 1:
        codes = functional.one_hot(rows.long().clamp(min=0)).to(own.weights)
        return _with(hard, Place(own.weights @ codes))
    mixed = own.weights @ rows.flatten(1).to(own.weights) if rows.dim() > 1 else own.weights @ rows
    return how.twin(hard, mixed.reshape(hard.shape))


def _scattered(func: Function, args: tuple[Any, ...], how: Straight) -> Tensor | None:
    """A value written to the places (n, m) of an empty tensor (n, k)."""
    base, axis, places, value = args
    own, hard = source(places), func(*args)
    if isinstance(value, Tensor) or not isinstance(own, Place) or hard.requires_grad:
        return hard
    if axis % base.dim() != base.dim() - 1 or own.weights.shape[-1] != base.shape[-1] or value is None:
        return hard
    # What a mask keeps has a derivative of its own, beside which the softmax's is noise.
    soft = (0.0 if places.shape[-1] > 1 and not how.leaky else value) * own.weights.sum(-2).to(hard.dtype)
    return (
        hard.add_(straight(soft, torch.zeros_like(soft))) if func is Tensor.scatter_ else how.twin(hard, soft)
    )


def _assigned(args: tuple[Any, ...]) -> Any:
    """x[rows, places] = value, for an empty tensor x (n, k)."""
    base, key, value = args
    own = source(key[-1]) if isinstance(key, tuple) and len(key) == 2 else None
    if not isinstance(own, Place) or isinstance(value, Tensor) or base.requires_grad:
        return None
    if own.weights.shape != base.shape or not base.is_floating_point():
        return None
    Tensor.__setitem__(base, key, value)
    soft = value * own.weights.to(base.dtype)
    return base.add_(straight(soft, torch.zeros_like(soft)))


def _joined(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], how: Straight) -> Tensor | None:
    """Tensors side by side, of which some have a source."""
    parts, rest = args[0], args[1:]
    found = [source(part) for part in parts]
    if not any(found):
        return None
    if all(isinstance(one, Place) for one in found):
        axis = kwargs.get("dim", rest[0] if rest else 0)
        weights = [one.weights for one in found if isinstance(one, Place)]
        if axis >= 0 and len({one.shape[-1] for one in weights}) == 1:
            return _with(func(*args, **kwargs), Place(func(weights, axis)))
        return None
    if any(one is not None and not isinstance(one, Votes) for one in found):
        return None
    softs = [one.soft if isinstance(one, Votes) else part for one, part in zip(found, parts, strict=True)]
    return how.twin(func(*args, **kwargs), func(softs, *rest, **kwargs))


def _taken(
    func: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    number: int,
    own: Place | Level | Votes,
    how: Straight,
) -> Any:
    """The result of `func` on whole numbers with a source, its argument `number`."""
    if isinstance(own, Votes):
        if func not in LINEAR:
            return None
        return how.twin(func(*args, **kwargs), _of_votes(func, args, kwargs))
    if func is functional.one_hot:
        hard = func(*args, **kwargs)
        if isinstance(own, Place):
            return _with(
                hard, Votes(functional.pad(own.weights, (0, hard.shape[-1] - own.weights.shape[-1])))
            )
        count = hard.shape[-1]
        return _of_level(lambda z: func(z.long().clamp(0, count - 1), count), hard, own, how)
    if isinstance(own, Level):
        if func not in ENTRYWISE or any(source(value) for value in args[number + 1 :]):
            return None
        return _of_level(
            lambda z: func(*args[:number], z, *args[number + 1 :], **kwargs), func(*args, **kwargs), own, how
        )
    return _of_place(func, args, kwargs, own)


def _of_votes(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`func` of what stands for the votes, in floating point."""
    softs = [own.soft if isinstance(own := source(value), Votes) else value for value in args]
    if func in LEVELS or func in (Tensor.float, Tensor.double, Tensor.half, Tensor.type_as):
        return softs[0]
    result: Tensor = func(*softs, **kwargs)
    return result


def _of_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], own: Place) -> Any:
    if func in ORDERS and own.scores is not None:
        # The order of an order is the rank of each score.
        return _with(func(*args, **kwargs), Votes(own.scores))
    if func not in VIEWS or kwargs or len(args) != 2:
        return None
    key = args[1]
    if func is Tensor.__getitem__:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, int | slice) or part is None for part in parts):
            return None
    elif not isinstance(key, int):
        return None
    elif key < 0:
        key -= 1
    return _with(func(*args), Place(func(own.weights, key)))


def _of_level(apply: Function, hard: Tensor, own: Level, how: Straight) -> Tensor | None:
    """What becomes of levels: an entry each, or a row each behind the others."""
    x, entries = own.entries, own.entries
    wide = hard.shape[: x.dim()] == x.shape and hard.dim() == x.dim() + 1
    if not wide and hard.shape != x.shape:
        return None
    if not hard.is_floating_point() and not wide:
        return _with(hard, Level(lambda z: apply(own.apply(z)), x))
    if wide:
        entries = x[..., None].expand(hard.shape)

    def applied(z: Tensor) -> Tensor:
        if z is entries:
            return hard.to(x.dtype)
        result: Tensor = apply(own.apply(z[..., 0] if wide else z))
        return result.to(x.dtype)

    return how.twin(hard, how.step(applied, entries))
