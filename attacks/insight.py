"""Logits and gradients of a network that may not want to give them, for an attack that reads its code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.smoothed import Reach, Smoothed
from attacks.withheld import bridged, opened, tamed, unhooked
from models.base import Classifier

Values = Callable[[Tensor], Tensor]
Windows = Callable[[], Smoothed]

# So many samples show whether a network answers otherwise to those who ask for gradients.
ASKED = 4


class Insight:
    """One model's logits with gradients, by the least interference that brings some.

    What works is remembered: a network that is opened (attacks.withheld), opened with its switches ignored,
    or bridged. Its parts never change a value, but where it answers otherwise to those who ask for gradients:
    then it is not told.
    """

    def __init__(self, model: Classifier) -> None:
        self._model = model
        self._switched = self._closed = self._bridged = False
        self._hidden: bool | None = False if model.stochastic else None
        self.dark = False

    @property
    def unasked(self) -> bool:
        """Whether it is not yet known if the network answers otherwise to those who ask for gradients."""
        return self._hidden is None

    def reach(self, x: Tensor, copies: int) -> tuple[Tensor, list[Tensor]]:
        """Logits of noisy copies (copies * k, ...), and how far each activation's input moves."""
        measured = Reach(copies, len(x) // copies)
        with torch.no_grad(), measured:
            logits = self._model.differentiable_logits(x)
        return logits, measured.reaches

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
                logits = self._opened(x, windows)
        gradient = None
        if logits.requires_grad:
            if tame:
                tamed(logits)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(values(logits).sum(), x, allow_unused=True)
        if gradient is None and windows is not None and not self._bridged:
            self._bridged = self._switched or self._closed
            self._switched = True
            return self.gradient(x, values, windows, tame)
        self.dark = gradient is None and windows is not None
        return logits.detach(), torch.zeros_like(x) if gradient is None else gradient

    def _opened(self, x: Tensor, windows: Windows) -> Tensor:
        """The logits of x with smoothed derivatives, and with those that the network withholds."""
        call = self._model.differentiable_logits
        if self._hidden is None:
            with torch.no_grad():
                told, asked = call(x[:ASKED].detach()), x[:ASKED].detach().requires_grad_(True)
            with torch.enable_grad():
                self._hidden = not torch.allclose(call(asked).detach(), told, rtol=1e-3, atol=1e-6)
        if self._bridged:
            return bridged(call, self._model, x, windows)
        logits = None if self._closed else opened(call, x, windows, self._switched, self._hidden)
        self._closed = logits is None
        if logits is None:
            with torch.enable_grad(), windows():
                logits = call(x)
        return logits
