"""Gradients that look ahead: the derivative of each activation, averaged over a window of its input.

A rectifier that is off has slope zero, although a legal move may switch it on, and a rounding has slope zero
everywhere: networks hide what they depend on behind such thresholds, on purpose or not. Here the slope of an
activation f at s is (f(s + h) - f(s - h)) / 2h, the derivative of f averaged over [s - h, s + h]. h is
a share of how far s moves under perturbations of the size that the adversary has, measured on noisy copies of
the sample; as the share falls to zero the true gradient comes back. Values are never changed.

The functions of torch are replaced where they are called, so that any network will do, whatever its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attacks.choices import Straight, chosen, softened
from attacks.falsified import BASE, derived, is_flat, lies
from attacks.functions import ACTIVATIONS, DIVISIONS, SOFTMAX, STEPS
from attacks.thresholds import CHOICES, Sloped, numbers, remembered, sloped, straight

SPREAD = 5.0
NARROWEST = 0.1
# What leaks through every activation where a gradient is zero throughout.
LEAK = 0.05
Function = Callable[..., Any]


class _Intercepted(TorchFunctionMode):
    """Hands every call of an activation, a step or a custom function on a floating tensor to `call`.

    Custom functions of autograd are those that map a batch to one of the same shape.
    """

    relaxed = leaky = False

    def __init__(self) -> None:
        super().__init__()
        self._inside = False

    def __enter__(self) -> Self:
        # Beneath Function.apply, which a network may have kept a name for.
        self._outer = vars(BASE).get("apply")
        BASE.apply = classmethod(self._applied)
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        if self._outer is None:
            del BASE.apply
        else:
            BASE.apply = self._outer
        super().__exit__(*reason)

    def __torch_function__(
        self, func: Function, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # What vmap hands over may not be kept: its functions stay as they are.
        if self._inside or not args or torch._C._functorch.peek_interpreter_stack() is not None:
            return func(*args, **kwargs)
        if (compared := remembered(func, args, kwargs)) is not None:
            return compared
        stepped = numbers(func, args, kwargs, self._step)
        if func in CHOICES and len(args) == 3:
            out = func(*args, **kwargs) if stepped is None else stepped
            return self.choice(out, args[1:] if func is torch.where else (args[0], args[2]))
        if stepped is not None:
            return stepped
        if (places := chosen(func, args, kwargs, Straight(self._step, self.relaxed, self.leaky))) is not None:
            return places
        if self.leaky and func in SOFTMAX:
            axis = kwargs["dim"] if "dim" in kwargs else args[1]
            return _leaking(func(*args, **kwargs), softened(args[0], axis))
        stepwise = func in STEPS or (func in DIVISIONS and kwargs.get("rounding_mode") is not None)
        if not (stepwise or func in ACTIVATIONS) or not args[0].is_floating_point():
            return func(*args, **kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "inplace"}
        return self.call(stepwise, lambda x: func(x, *args[1:], **rest), args[0])

    def _step(self, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.call(True, apply, x)

    def _applied(self, cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        """The result of a custom function, by way of `custom` where it maps a batch to its own shape."""
        plain, outer = super(BASE, cls).apply, self._inside  # type: ignore[misc]
        if outer or cls is Sloped:
            return plain(*args, **kwargs)
        self._inside = True
        try:
            out = plain(*args, **kwargs)
            if not isinstance(out, tuple):
                return self._looked_at(Custom(cls, plain), args, kwargs, out)
            # Each of several results may be answered for in a way of its own.
            parts = (self._looked_at(Custom(cls, plain, i), args, kwargs, one) for i, one in enumerate(out))
            return tuple(parts)
        finally:
            self._inside = outer

    def _looked_at(self, function: Custom, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """The one result `out` of a custom function, by way of `custom` or `opaque`."""
        if not _real(out) or out.dim() < 2:
            return out
        if _real(args[0]) and args[0].dim() >= 2 and args[0].shape == out.shape:
            return self.custom(out, function.of(args, kwargs, 0), args[0])
        return self.opaque(function, args, kwargs, out)

    def _derived(
        self, function: Custom, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> Tensor | None:
        """The value `out` of a custom function with the derivative of its forward pass, seen as any other."""
        self._inside = False
        try:
            return derived(function.cls, args, kwargs, out, function.place)
        finally:
            self._inside = True

    def call(self, step: bool, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The result of `apply` at x; a `step` is flat wherever it does not jump."""
        raise NotImplementedError

    def choice(self, out: Tensor, sides: tuple[Any, ...]) -> Tensor:
        """The result `out` of a choice between two sides."""
        return out

    def custom(self, out: Tensor, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The result `out` of a custom function `apply` at x."""
        raise NotImplementedError

    def opaque(self, function: Custom, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        """The result `out` of any other custom function of `args`."""
        raise NotImplementedError


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@dataclass(frozen=True)
class Custom:
    """A custom function `cls` as `plain` applies it, or its result at `place` alone where it has several."""

    cls: Any
    plain: Function
    place: int | None = None

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> Function:
        """The function of its argument `number` alone."""

        def apply(z: Tensor) -> Any:
            out = self.plain(*args[:number], z, *args[number + 1 :], **kwargs)
            return out if self.place is None else out[self.place]

        return apply


class Reach(_Intercepted):
    """Measures, over noisy copies of k samples, how far the input of every activation moves.

    The batch holds the copies one after the other: (copies * k, ...). `reaches` has one tensor (k, ...) a
    call, SPREAD standard deviations wide; of shape (k,) where an input's first dimension is not the batch.
    """

    def __init__(self, copies: int, samples: int) -> None:
        super().__init__()
        self.copies, self.samples = copies, samples
        self.reaches: list[Tensor] = []

    def call(self, step: bool, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if x.shape[0] != self.copies * self.samples:
            self.reaches.append(x.new_zeros(self.samples))
            return apply(x)
        versions = x.unflatten(0, (self.copies, -1))
        variance = (versions - versions.mean(0)).square().mean(0)
        self.reaches.append(SPREAD * variance.sqrt())
        return apply(x)

    def custom(self, out: Tensor, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.call(True, lambda _: out, x)

    def opaque(self, function: Custom, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        """Keeps whether the function lies, and then what its forward pass moves: (k, 1 + calls in there)."""
        place, count = len(self.reaches), self.copies * self.samples
        self.reaches.append(out.new_zeros(self.samples, 1))
        for number, x in enumerate(args):
            if _real(x) and x.dim() >= 2 and len(x) == count:
                if lies(function.of(args, kwargs, number), x):
                    self._derived(function, args, kwargs, out)
                    self.reaches[place] = out.new_ones(self.samples, len(self.reaches) - place)
                break
        return out


class Smoothed(_Intercepted):
    """Averages derivatives over windows of `width` times the `reaches`; a width of 0 leaves them as they are.

    A step function keeps a window of at least NARROWEST, and without reaches passes gradients straight
    through (Athalye et al. 2018, 1802.00420, section 4.1): its own derivative is zero. Where a reach does
    not fit, as in a network that takes another path than when it was measured, derivatives stay as they are.
    A custom function whose backward pass is not the derivative of its forward pass (attacks.falsified) counts
    as a step where it maps entries, and has the derivative of its forward pass otherwise.
    `leaky`: a little passes every activation and both sides of a choice, for gradients that are zero
    otherwise. `relaxed`: what is looked up by a largest score is an average over all (attacks.choices).
    """

    def __init__(
        self, reaches: list[Tensor] | None, width: float, leaky: bool = False, relaxed: bool = False
    ) -> None:
        super().__init__()
        self.reaches, self.width, self.leaky, self.relaxed = reaches, width, leaky, relaxed
        self.calls = 0

    def call(self, step: bool, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = self._averaged(step, apply, x)
        return _leaking(out, x) if self.leaky else out

    def choice(self, out: Tensor, sides: tuple[Any, ...]) -> Tensor:
        return _leaking(out, *sides) if self.leaky and out.is_floating_point() else out

    def custom(self, out: Tensor, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if is_flat(apply, x) or lies(apply, x):
            return self.call(True, apply, x)
        self.calls += 1
        return out

    def opaque(self, function: Custom, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        place = self.calls
        if self.reaches and place < len(self.reaches) and self.reaches[place].dim() == 2:
            found, following = bool(self.reaches[place].any()), place + self.reaches[place].shape[1]
        else:
            mine = [number for number, x in enumerate(args) if _real(x) and x.requires_grad]
            found = bool(mine) and lies(function.of(args, kwargs, mine[0]), args[mine[0]])
            following = place + 1
        self.calls = place + 1
        if found:
            honest = self._derived(function, args, kwargs, out)
            with torch._C.DisableTorchFunction():
                # What cannot be derived is cut off, for those who go around it (attacks.withheld).
                out = out.detach() if honest is None else honest
        self.calls = following
        return out

    def _averaged(self, step: bool, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        place, self.calls = self.calls, self.calls + 1
        width = max(self.width, NARROWEST) if step else self.width
        reach = self.reaches[place] if self.reaches and place < len(self.reaches) else None
        if reach is None or reach.shape != x.shape or not width:
            return sloped(x, apply(x), torch.ones_like(x)) if step else apply(x)
        with torch.no_grad():
            # Narrower than the numbers resolve, a difference would be noise.
            least = torch.finfo(x.dtype).tiny ** 0.5
            half = torch.maximum(width * reach, 1e-3 * x.abs()).clamp(min=least)
            slope = (apply(x + half) - apply(x - half)) / (2 * half)
            out = apply(x)
        return sloped(x, out, slope)


def _leaking(out: Tensor, *sources: Any) -> Tensor:
    """The value of `out`, with a little of the derivative towards each source."""
    for source in sources:
        if isinstance(source, Tensor) and source.is_floating_point() and source.requires_grad:
            out = out + straight(source, torch.zeros_like(source), LEAK).to(out.dtype)
    return out
