"""Gradients that a network withholds or falsifies: what cuts the graph, or answers zero, is passed straight.

A network may hide what it depends on by a detached tensor, by turning gradients off inside its forward pass,
by a function whose backward pass answers zero, by hooks that change gradients on their way, or what is kept
for them, or by answering otherwise where gradients are asked for. Values are never changed, but for these
last: the derivative of what withholds its own is taken to be the identity, which is what an attack that
reads the code would do (BPDA).
Source: Athalye, Carlini, Wagner 2018, 1802.00420, section 4.1 (straight-through).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from attacks.thresholds import SLOPED

CUTS = {Tensor.detach, torch.detach}
IN_PLACE = Tensor.detach_
DATA = Tensor.data.__get__  # type: ignore[attr-defined]
SWITCH = torch._C._set_grad_enabled
ARRAYS: set[Any] = {Tensor.numpy, Tensor.__array__}
HOOKS = {Tensor.register_hook}
GRAPH = vars(torch._C.TensorBase)["grad_fn"].__get__
ANSWERS: dict[Any, Any] = {
    vars(torch._C.TensorBase)[name].__get__: answer
    for name, answer in (("requires_grad", False), ("is_leaf", True), ("grad_fn", None))
}
KEEPING = torch.autograd.graph.saved_tensors_hooks
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


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
        if func in HOOKS:
            # It may look at a gradient that passes, not turn it round.
            return func(args[0], _looking(args[1]))
        if func == GRAPH:
            node = func(*args)
            return None if node is None else _Node(node)
        if func in ARRAYS:
            return func(args[0].detach(), *args[1:], **(kwargs or {}))
        cuts = func in CUTS or func == DATA or func is IN_PLACE
        if cuts and args[0].requires_grad:
            # Another tensor, so that what is done to it in place stays out of the original.
            return args[0] if func is IN_PLACE else args[0].view_as(args[0])
        return func(*args, **(kwargs or {}))


def _looking(hook: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """A hook that is shown a copy of the gradient, and whose answer is not heard."""

    def look(gradient: Tensor) -> None:
        hook(gradient.clone())

    return look


class _Node:
    """A function of the graph, whose hooks may look at the gradients that pass and not change them."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        return tuple((node and _Node(node), place) for node, place in self._node.next_functions)

    def register_hook(self, hook: Callable[..., Any]) -> Any:
        return self._node.register_hook(_unheard(hook))

    def register_prehook(self, hook: Callable[..., Any]) -> Any:
        return self._node.register_prehook(_unheard(hook))


def _unheard(hook: Callable[..., Any]) -> Callable[..., None]:
    """A hook of a function of the graph that is shown copies, and whose answer is not heard."""

    def look(*gradients: tuple[Tensor | None, ...]) -> None:
        hook(*(tuple(part if part is None else part.clone() for part in some) for some in gradients))

    return look


class Hidden(TorchFunctionMode):
    """Tells the network that nobody asks for gradients."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        if func in ANSWERS:
            return ANSWERS[func]
        return func(*args, **(kwargs or {}))


def opened(
    call: Callable[[Tensor], Tensor],
    x: Tensor,
    inner: Callable[[], TorchFunctionMode],
    switched: bool,
    hidden: bool = False,
) -> Tensor | None:
    """The logits `call`(x), in the mode `inner`, with the derivatives that the network withholds.

    hidden: it is not told that it is differentiated. None for a network that cannot do without its cuts, as
    one that differentiates inside its forward pass.
    """
    try:
        with warnings.catch_warnings(), torch.enable_grad(), ExitStack() as stack:
            warnings.simplefilter("ignore")
            stack.enter_context(Opened(switched))
            stack.enter_context(inner())
            # What is kept for the backward pass is kept as it is.
            stack.enter_context(_replaced(KEEPING, "__enter__", lambda _: None))
            stack.enter_context(_replaced(KEEPING, "__exit__", lambda *_: None))
            if switched:
                stack.enter_context(_replaced(torch._C, "_InferenceMode", lambda _: nullcontext()))
            if hidden:
                stack.enter_context(Hidden())
                stack.enter_context(_replaced(torch, "is_grad_enabled", lambda: False))
            logits = call(x)
        _pass_straight(logits)
    except Exception:
        return None
    return logits


def bridged(
    call: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor, inner: Callable[[], TorchFunctionMode]
) -> Tensor:
    """The logits `call`(x), in the mode `inner`, where the first layer with weights is taken to see x itself.

    For what stands before that layer and hands out no gradient, whatever it is (BPDA with the identity).
    """
    done: list[bool] = []

    def bridge(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        seen = inputs[0] if inputs else None
        if done or not isinstance(seen, Tensor) or seen.numel() != x.numel() or len(seen) != len(x):
            return None
        done.append(True)
        straight = seen.detach().clone().to(x.dtype) + (x - x.detach()).reshape(seen.shape)
        return (straight.to(seen.dtype), *inputs[1:])

    layers = [module for module in network.modules() if isinstance(module, LAYERS)]
    handles = [layer.register_forward_pre_hook(bridge) for layer in layers]
    try:
        with torch.enable_grad(), inner():
            logits = call(x)
    finally:
        for handle in handles:
            handle.remove()
    _pass_straight(logits)
    return logits


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


@contextmanager
def unhooked(network: nn.Module) -> Iterator[None]:
    """Sets aside what modules do to gradients that pass them: it is no part of what the network computes."""
    kept = [
        (module, name, getattr(module, name))
        for module in network.modules()
        for name in ("_backward_hooks", "_backward_pre_hooks")
        if getattr(module, name, None)
    ]
    for module, name, _ in kept:
        setattr(module, name, OrderedDict())
    try:
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)


def tamed(logits: Tensor) -> None:
    """Lets no infinity or NaN pass any function of the graph of `logits`: it counts as zero there."""
    for node in _nodes(logits):
        node.register_hook(
            lambda given, _: tuple(
                None if part is None else part.nan_to_num(0.0, 0.0, 0.0) if part.is_floating_point() else part
                for part in given
            )
        )


def _nodes(logits: Tensor) -> Iterator[Any]:
    """Every function of the graph of `logits`, once."""
    seen: set[Any] = set()
    waiting: list[Any] = [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        yield node


def _pass_straight(logits: Tensor) -> None:
    """Lets gradients pass straight through every custom function of the graph of `logits` that answers zero.

    Decided for each sample by itself, for functions whose input has their output's shape.
    """
    for node in _nodes(logits):
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
