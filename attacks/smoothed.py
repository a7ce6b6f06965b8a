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
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from attacks.thresholds import Sloped, numbers, remembered

SPREAD = 5.0
NARROWEST = 0.1
ACTIVATIONS = {
    torch.relu,
    Tensor.relu,
    functional.relu,
    functional.relu6,
    functional.hardtanh,
    functional.hardsigmoid,
    functional.hardswish,
    functional.leaky_relu,
    functional.elu,
    functional.selu,
    functional.celu,
    functional.gelu,
    functional.silu,
    functional.mish,
    functional.softplus,
    torch.sigmoid,
    Tensor.sigmoid,
    functional.sigmoid,
    torch.tanh,
    Tensor.tanh,
    functional.tanh,
    functional.logsigmoid,
    functional.softsign,
    functional.prelu,
    functional.threshold,
    functional.hardshrink,
    functional.softshrink,
    torch.clamp,
    Tensor.clamp,
    torch.clip,
    Tensor.clip,
    torch.clamp_min,
    Tensor.clamp_min,
    torch.clamp_max,
    Tensor.clamp_max,
    torch.sin,
    Tensor.sin,
    torch.cos,
    Tensor.cos,
    torch.frac,
    Tensor.frac,
    torch.remainder,
    Tensor.remainder,
    Tensor.__mod__,
}
STEPS = {
    torch.round,
    Tensor.round,
    torch.floor,
    Tensor.floor,
    torch.ceil,
    Tensor.ceil,
    torch.trunc,
    Tensor.trunc,
    torch.fix,
    Tensor.fix,
    torch.sign,
    Tensor.sign,
    torch.sgn,
    Tensor.sgn,
    torch.heaviside,
    Tensor.heaviside,
    torch.floor_divide,
    Tensor.floor_divide,
    Tensor.__floordiv__,
}
DIVISIONS = {torch.div, Tensor.div, torch.divide, Tensor.divide}
Function = Callable[..., Any]


class _Intercepted(TorchFunctionMode):
    """Hands every call of an activation, a step or a custom function on a floating tensor to `call`.

    Custom functions of autograd are those that map a batch to one of the same shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self._inside = False

    def __enter__(self) -> Self:
        self._plain = vars(torch.autograd.Function)["apply"]
        torch.autograd.Function.apply = classmethod(self._applied)  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        torch.autograd.Function.apply = self._plain  # type: ignore[method-assign]
        super().__exit__(*reason)

    def __torch_function__(
        self, func: Function, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside or not args:
            return func(*args, **kwargs)
        if (compared := remembered(func, args, kwargs)) is not None:
            return compared
        if (stepped := numbers(func, args, kwargs, self._step)) is not None:
            return stepped
        stepwise = func in STEPS or (func in DIVISIONS and kwargs.get("rounding_mode") is not None)
        if not (stepwise or func in ACTIVATIONS) or not args[0].is_floating_point():
            return func(*args, **kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "inplace"}
        return self.call(stepwise, lambda x: func(x, *args[1:], **rest), args[0])

    def _step(self, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.call(True, apply, x)

    def _applied(self, cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        """The result of a custom function, by way of `custom` where it maps a batch to its own shape."""
        plain, outer = self._plain.__get__(None, cls), self._inside
        x = args[0] if args else None
        if outer or cls is Sloped or not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point():
            return plain(*args, **kwargs)
        self._inside = True
        try:
            out = plain(*args, **kwargs)
            if not isinstance(out, Tensor) or out.shape != x.shape:
                return out
            return self.custom(out, lambda z: plain(z, *args[1:], **kwargs), x)
        finally:
            self._inside = outer

    def call(self, step: bool, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The result of `apply` at x; a `step` is flat wherever it does not jump."""
        raise NotImplementedError

    def custom(self, out: Tensor, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The result `out` of a custom function `apply` at x."""
        raise NotImplementedError


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


class Smoothed(_Intercepted):
    """Averages derivatives over windows of `width` times the `reaches`; a width of 0 leaves them as they are.

    A step function keeps a window of at least NARROWEST, and without reaches passes gradients straight
    through (Athalye et al. 2018, 1802.00420, section 4.1): its own derivative is zero. Where a reach does
    not fit, as in a network that takes another path than when it was measured, derivatives stay as they are.
    """

    def __init__(self, reaches: list[Tensor] | None, width: float) -> None:
        super().__init__()
        self.reaches, self.width = reaches, width
        self.calls = 0

    def call(self, step: bool, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self._averaged(step, apply, x)

    def custom(self, out: Tensor, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if _is_flat(apply, x):
            return self._averaged(True, apply, x)
        self.calls += 1
        return out

    def _averaged(self, step: bool, apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        place, self.calls = self.calls, self.calls + 1
        width = max(self.width, NARROWEST) if step else self.width
        reach = self.reaches[place] if self.reaches and place < len(self.reaches) else None
        if reach is None or reach.shape != x.shape or not width:
            return _sloped(x, apply(x), torch.ones_like(x)) if step else apply(x)
        with torch.no_grad():
            # Narrower than the numbers resolve, a difference would be noise.
            least = torch.finfo(x.dtype).tiny ** 0.5
            half = torch.maximum(width * reach, 1e-3 * x.abs()).clamp(min=least)
            slope = (apply(x + half) - apply(x - half)) / (2 * half)
            out = apply(x)
        return _sloped(x, out, slope)


def _sloped(x: Tensor, out: Tensor, slope: Tensor) -> Tensor:
    sloped: Tensor = Sloped.apply(x, out.detach(), slope)
    return sloped


def _is_flat(apply: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether `apply` answers zero to every gradient at x."""
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        out = apply(z)
        if not out.requires_grad:
            return True
        (gradient,) = torch.autograd.grad(out.sum(), z, allow_unused=True)
    return gradient is None or not bool(gradient.any())
