"""Logits and gradients of a network that may not want to give them, for an attack that reads its code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from attacks.evened import evened, unit_of
from attacks.scores import Recorded, Scored, goes_around, place_of
from attacks.smoothed import Reach, Smoothed
from attacks.withheld import bridged, opened, tamed, unhooked
from models.base import Classifier
from models.errors import NotApplicable

Values = Callable[[Tensor], Tensor]
Windows = Callable[[], Smoothed]

# So many samples show whether a network answers otherwise to those who ask for gradients.
ASKED = 4


class Insight:
    """One model's logits with gradients, by the least interference that brings some.

    What works is remembered: a network that is opened (attacks.withheld), opened with its switches ignored,
    or bridged. Its parts never change a value, but where it answers otherwise to those who ask for gradients:
    then it is not told. One that answers otherwise where it is looked into is left alone.
    """

    def __init__(self, model: Classifier) -> None:
        self._model = model
        self._switched = self._closed = self._bridged = self._seen = False
        self._hidden: bool | None = False if model.stochastic else None
        self._unit: float | None = None
        self._place: int | None = None
        self.dark = False

    @property
    def unasked(self) -> bool:
        """Whether it is not yet known if the network answers otherwise to those who ask for gradients."""
        return self._hidden is None

    def reach(self, x: Tensor, copies: int) -> tuple[Tensor, list[Tensor]]:
        """Logits of noisy copies (copies * k, ...), and how far each activation's input moves."""
        if self._seen:
            with torch.no_grad():
                return evened(self._model.differentiable_logits(x), self._unit), []
        measured, call = Reach(copies, len(x) // copies), self._scored(self._model.differentiable_logits)
        with torch.no_grad(), measured:
            scores = call(x)
        return evened(call.judged(scores), self._unit), measured.reaches

    def logits(self, x: Tensor) -> Tensor:
        """Logits (k, classes), once it is known what they hide by their scores, or on one scale.

        Decisions stay as they are (attacks.scores, attacks.evened).
        """
        call = self._scored(self._model.logits)
        with torch.no_grad():
            return evened(call.judged(call(x)), self._unit)

    def _scored(self, call: Callable[[Tensor], Tensor]) -> Scored:
        return Scored(call, self._model.num_classes, self._place)

    def relaxed(self, x: Tensor) -> Tensor:
        """Logits (k, classes) where averages stand for what is looked up by a largest score."""
        with torch.no_grad(), Smoothed(None, 0.0, relaxed=True):
            return self._model.differentiable_logits(x)

    def gradient(
        self, x: Tensor, values: Values, windows: Windows | None, tame: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Logits (k, classes) and the gradient of values(logits) at x (k, ...), zero where there is none.

        windows None asks for the network's own gradient, as it is. tame: what is no number on its way
        through the network counts as zero.
        """
        x = x.detach().requires_grad_(True)
        if windows is None:
            with torch.enable_grad():
                logits = self._model.differentiable_logits(x)
        else:
            with unhooked(self._model):
                logits = evened(self._opened(x, windows), self._unit)
        if tame and logits.requires_grad:
            tamed(logits)
        gradient = _pulled_back(logits, x, values) if logits.requires_grad else None
        if gradient is None and windows is not None and not self._bridged:
            self._bridged = self._switched or self._closed
            self._switched = True
            return self.gradient(x, values, windows, tame)
        self.dark = gradient is None and windows is not None
        return logits.detach(), torch.zeros_like(x) if gradient is None else gradient

    def _opened(self, x: Tensor, windows: Windows) -> Tensor:
        """Logits or scores of x with smoothed derivatives, and with those that the network withholds."""
        if self._hidden is None:
            self._ask(x[:ASKED].detach(), windows)
        call = self._scored(self._model.differentiable_logits)
        if self._seen:
            with torch.enable_grad():
                scores = call(x)
        elif self._bridged:
            scores = bridged(call, self._model, x, windows)
        else:
            found = None if self._closed else opened(call, x, windows, self._switched, bool(self._hidden))
            self._closed = found is None
            if found is None:
                with torch.enable_grad(), windows():
                    found = call(x)
            scores = found
        return call.judged(scores)

    def _ask(self, x: Tensor, windows: Windows) -> None:
        """Learns whether the network answers otherwise where gradients are on, or where it is looked into.

        And what its logits hide.
        """
        call, z = self._model.differentiable_logits, x.clone().requires_grad_(True)
        with torch.no_grad():
            told = call(x)
            with windows(), Recorded(told.shape) as seen:
                inside = call(x)
        with torch.enable_grad(), Recorded(told.shape) as followed:
            asked = call(z)
        self._unit = unit_of(told)
        self._hidden = not torch.allclose(asked, told, rtol=1e-3, atol=1e-6)
        self._seen = not torch.allclose(inside, told, rtol=1e-3, atol=1e-6, equal_nan=True)
        place = None
        if not self._seen and self._model.surrogate is None:
            place = place_of(seen.found, told, withheld=not asked.requires_grad)
        if place is not None and not goes_around(asked, followed.at(place, asked), z):
            self._place, self._unit = place, None


@contextmanager
def granted(name: str) -> Iterator[None]:
    """Raises NotApplicable where a network refuses to be differentiated, as a reentrant checkpoint does."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as reason:
        said = str(reason).splitlines()[0]
        raise NotApplicable(f"model '{name}' does not let itself be differentiated: {said}") from reason


def _pulled_back(logits: Tensor, x: Tensor, values: Values) -> Tensor | None:
    """The gradient of values(logits) at x; None where there is none, or the network refuses to give it."""
    try:
        with torch.enable_grad(), granted(""):
            gradient: Tensor | None = torch.autograd.grad(values(logits).sum(), x, allow_unused=True)[0]
    except NotApplicable:
        return None
    return gradient
