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

from attacks.choices import Straight, chosen
from attacks.thresholds import CHOICES, Sloped, numbers, remembered, sloped, straight

SPREAD = 5.0
NARROWEST = 0.1
# What leaks through every activation where a gradient is zero throughout.
LEAK = 0.05
# A function's own derivative lies where it is further off than this from its difference over a small step.
SMALL, HALF, TWICE = 1e-2, 0.5, 2.0
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
BASE: Any = torch.autograd.function._SingleLevelFunction


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
        if self._inside or not args:
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

    def choice(self, out: Tensor, sides: tuple[Any, ...]) -> Tensor:
        """The result `out` of a choice between two sides."""
        return out

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
    A custom function whose backward pass is not the derivative of its forward pass counts as a step.
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
        if _is_flat(apply, x) or _lies(apply, x):
            return self.call(True, apply, x)
        self.calls += 1
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


def _lies(apply: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether `apply` answers to the difference that it makes over a small step with something else.

    Where the two agree, the answer along the step is the square of that difference.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        signs = 2.0 * torch.randint(0, 2, x.shape, device=x.device).to(x) - 1
    step = SMALL * x.detach().std() * signs
    with torch.no_grad():
        difference = apply(x + step) - apply(x - step)
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        (answer,) = torch.autograd.grad(apply(z), z, difference)
    promised = (2 * step * answer).flatten(1).sum(1)
    made = difference.square().flatten(1).sum(1)
    seen = made > 0
    if not bool(seen.any()) or not bool(torch.isfinite(answer).all()):
        return False
    share = float((promised[seen] / made[seen]).median())
    return not HALF < share < TWICE


def _is_flat(apply: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether `apply` answers zero to every gradient at x."""
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        out = apply(z)
        if not out.requires_grad:
            return True
        (gradient,) = torch.autograd.grad(out.sum(), z, allow_unused=True)
    return gradient is None or not bool(gradient.any())
