"""Gradients that a network withholds: what cuts the graph, or answers zero, is passed straight.

A network may hide what it depends on by a detached tensor, by turning gradients off inside its forward pass,
or by a function whose backward pass answers zero. Values are never changed: the derivative of what withholds
its own is taken to be the identity, which is what an attack that reads the code would do (BPDA).
Source: Athalye, Carlini, Wagner 2018, 1802.00420, section 4.1 (straight-through).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from attacks.thresholds import SLOPED

CUTS = {Tensor.detach, torch.detach}
IN_PLACE = Tensor.detach_
DATA = Tensor.data.__get__  # type: ignore[attr-defined]
SWITCH = torch._C._set_grad_enabled
ARRAYS: set[Any] = {Tensor.numpy, Tensor.__array__}


class Opened(TorchFunctionMode):
    """Ignores what takes a tensor out of the graph; with `switched` also what turns gradients off.

    A network that keeps numbers from one call to the next does so with gradients off: `switched` is for
    those that hand out no gradient at all otherwise.
    """

    def __init__(self, switched: bool) -> None:
        super().__init__()
        self.switched = switched

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        if self.switched and func is SWITCH:
            return None
        if func in ARRAYS:
            return func(args[0].detach(), *args[1:], **(kwargs or {}))
        cuts = func in CUTS or func == DATA or func is IN_PLACE
        if cuts and args[0].requires_grad:
            # Another tensor, so that what is done to it in place stays out of the original.
            return args[0] if func is IN_PLACE else args[0].view_as(args[0])
        return func(*args, **(kwargs or {}))


def opened(
    call: Callable[[Tensor], Tensor], x: Tensor, inner: Callable[[], TorchFunctionMode], switched: bool
) -> Tensor | None:
    """The logits `call`(x), in the mode `inner`, with the derivatives that the network withholds.

    None for a network that cannot do without its cuts, as one that differentiates inside its forward pass.
    """
    try:
        with warnings.catch_warnings(), torch.enable_grad(), Opened(switched), inner():
            warnings.simplefilter("ignore")
            logits = call(x)
        _pass_straight(logits)
    except Exception:
        return None
    return logits


def _pass_straight(logits: Tensor) -> None:
    """Lets gradients pass straight through every custom function of the graph of `logits` that answers zero.

    Decided for each sample by itself, for functions whose input has their output's shape.
    """
    seen: set[Any] = set()
    waiting: list[Any] = [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if isinstance(node, BackwardCFunction) and not isinstance(node, SLOPED):
            node.register_hook(_unless_zero)


def _unless_zero(
    given: tuple[Tensor | None, ...], received: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...] | None:
    """What a function hands down, `given` what it received; its own answer unless that is zero."""
    above = received[0]
    if above is None:
        return None
    return tuple(
        torch.where((part == 0).flatten(1).all(1).view(-1, *[1] * (part.dim() - 1)), above, part)
        if part is not None and part.shape == above.shape and part.dim() > 1
        else part
        for part in given
    )
