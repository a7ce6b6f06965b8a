"""Custom functions of autograd whose backward pass is not the derivative of their forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# A function's own derivative lies where it is further off than this from its difference over a small step.
SMALL, HALF, TWICE = 1e-2, 0.5, 2.0
# Or where what it answers to a random cotangent is off by more than all that the function does.
OFF = 1.0
BASE: Any = torch.autograd.function._SingleLevelFunction


def lies(apply: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether `apply` answers to the difference that it makes over a small step with something else.

    Where the two agree, the answer along the step is the square of that difference. Along a step that has
    nothing to do with the cotangent, noise in the answer shows too.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        signs = 2.0 * torch.randint(0, 2, x.shape, device=x.device).to(x) - 1
        step = SMALL * x.detach().std() * signs
        with torch.no_grad():
            difference = apply(x + step) - apply(x - step)
            cotangent = 2.0 * torch.randint(0, 2, difference.shape, device=x.device).to(difference) - 1
        made, other = (_samples(difference * v).sum(1) for v in (difference, cotangent))
        seen = made > 0
        if not bool(seen.any()):
            return False
        try:
            answers = [_answer(apply, x, v) for v in (difference, cotangent)]
        except RuntimeError:
            # It has no backward pass for those who differentiate a part of the graph: reentrant checkpoints.
            return True
    promised, beside = (_samples(2 * step * answer).sum(1).to(made) for answer in answers)
    if len(promised) != len(made):
        made, promised, other, beside = (part.sum()[None] for part in (made, promised, other, beside))
        seen = made > 0
    share = float((promised[seen] / made[seen]).median())
    return not HALF < share < TWICE or bool((beside - other).norm() > OFF * other.norm())


def is_flat(apply: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether `apply` answers zero to every gradient at x."""
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        out = apply(z)
        if not out.requires_grad:
            return True
        (gradient,) = torch.autograd.grad(out.sum(), z, allow_unused=True)
    return gradient is None or not bool(gradient.any())


def derived(
    cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor, place: int | None = None
) -> Tensor | None:
    """The value `out` of a custom function with its forward pass's derivative; None where it has none.

    `place`: which of several results it is.
    """
    try:
        with torch.enable_grad():
            own = BASE.setup_context is cls.setup_context
            found = cls.forward(*((_Context(args),) if own else ()), *args, **kwargs)
            found = found if place is None else found[place]
    except (RuntimeError, AttributeError, TypeError, IndexError):
        return None
    if not isinstance(found, Tensor) or not found.requires_grad or found.shape != out.shape:
        return None
    return found if torch.allclose(found.detach(), out.detach(), rtol=1e-3, atol=1e-5) else None


class _Context:
    """What a forward pass keeps for a backward pass that nobody will ask for."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(isinstance(one, Tensor) and one.requires_grad for one in args)

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def _nothing(self, *_: Any) -> None:
        """Says nothing that would matter here."""

    save_for_forward = mark_dirty = mark_non_differentiable = set_materialize_grads = _nothing


def _answer(apply: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """What `apply` answers at x (k, ...) to a cotangent; what is no number counts as zero."""
    with torch.enable_grad():
        z = x.detach().requires_grad_(True)
        (answer,) = torch.autograd.grad(apply(z), z, cotangent, allow_unused=True)
    return torch.zeros_like(x) if answer is None else answer.nan_to_num(0.0, 0.0, 0.0)


def _samples(values: Tensor) -> Tensor:
    """One row a sample: (k, entries)."""
    return values.flatten(1) if values.dim() > 1 else values[:, None] if values.dim() else values[None, None]
