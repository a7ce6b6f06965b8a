"""The scores behind logits: what a network ranks its classes by, before a function that hides by how much.

A softmax that saturates, a clip, a power or labels in place of scores keep the order of the classes and leave
gradients that are zero, or those of one class alone. The values that they were computed from have both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# So many pairs of classes must be told apart by the logits, or scores of the same order may be an accident.
PAIRS = 9
# What logits say beyond a multiple of the scores, as a share of them: below it nothing is hidden.
BENT = 0.1


class Recorded(TorchFunctionMode):
    """Keeps every result of a function of torch that has the shape of logits (n, classes)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.found = shape, list[Tensor]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and out.shape == self.shape:
            self.found.append(out)
        return out

    def at(self, place: int, logits: Tensor) -> Tensor:
        """The result at a `place` (of `place_of`) of those that have a gradient where any is asked for.

        The `logits` themselves where there are not so many.
        """
        found = self.found
        if torch.is_grad_enabled():
            found = [one for one in found if one.requires_grad or one is logits]
        return found[-place] if len(found) >= place else logits


class Scored:
    """A classifier's `call` that hands out the scores at a `place` (of `place_of`) instead of the logits.

    `logits` keeps the logits of the last call; without a place they are the scores.
    """

    def __init__(self, call: Callable[[Tensor], Tensor], classes: int, place: int | None) -> None:
        self.call, self.classes, self.place = call, classes, place

    def __call__(self, x: Tensor) -> Tensor:
        if self.place is None:
            self.logits = self.call(x)
            return self.logits
        with Recorded((len(x), self.classes)) as seen:
            self.logits = self.call(x)
        return seen.at(self.place, self.logits)

    def judged(self, scores: Tensor) -> Tensor:
        """The `scores` of the last call (k, classes), in rows where they decide otherwise the logits."""
        if scores is self.logits:
            return scores
        first = scores.argmax(1, keepdim=True)
        others = self.logits.scatter(1, first, -torch.inf).amax(1, keepdim=True)
        return torch.where(self.logits.gather(1, first) > others, scores.to(self.logits), self.logits)


def place_of(found: list[Tensor], logits: Tensor, withheld: bool) -> int | None:
    """Which of the results `found` is the first to rank classes as the logits (k, classes) do, from the last.

    None where that one says no more than the logits do, unless their gradient is `withheld`.
    """
    first = next((i for i, one in enumerate(found) if _ranks(one, logits)), None)
    if first is None or not (withheld or _bends(found[first], logits)):
        return None
    return len(found) - first


def _ranks(scores: Tensor, logits: Tensor) -> bool:
    """Whether every pair of classes that the logits (k, classes) tell apart is told apart alike."""
    told, behind = (one.double()[:, :, None] - one.double()[:, None] for one in (logits, scores))
    apart = told > 0
    return int(apart.sum()) >= PAIRS and bool((behind[apart] > 0).all())


def _bends(scores: Tensor, logits: Tensor) -> bool:
    """Whether the logits (k, classes) are no mere multiple of the scores, up to a constant a row."""
    one, other = (part.double() - part.double().mean(1, keepdim=True) for part in (scores, logits))
    size = (one * one).sum()
    left = other - one * ((one * other).sum() / size)
    return bool(torch.isfinite(left).all() and left.norm() > BENT * other.norm())


def goes_around(logits: Tensor, scores: Tensor, x: Tensor) -> bool:
    """Whether a way leads from the graph of the logits to the leaf x that is not through the scores."""
    seen: set[Any] = {None, scores.grad_fn}
    waiting: list[Any] = [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is x:
            return True
        waiting += [following for following, _ in node.next_functions]
    return False
