"""What an adversary may see of a model, with an exact count of what it used.

Each view counts per sample of the batch under attack (`rows` are positions in that batch,
repeated where one sample is evaluated several times); `rows=None` books the cost on the
attack as a whole, for what is fitted on other images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from attacks.smoothed import Reach, Smoothed
from models.base import Classifier

V = TypeVar("V", bound="Access")


class Access:
    """The counters shared by all views: forward and backward passes of each of n samples.

    An attack of several stages also notes here which of them broke which sample.
    """

    def __init__(self, model: Classifier, n: int) -> None:
        self._model = model
        self.num_classes = model.num_classes
        self.stochastic = model.stochastic
        self.box = model.box
        self.forward = torch.zeros(n, dtype=torch.int64)
        self.backward = torch.zeros(n, dtype=torch.int64)
        self.shared_forward = 0
        self.shared_backward = 0
        self.stage = torch.full((n,), -1, dtype=torch.int64)
        self.stages: list[str] = []

    def credit(self, rows: Tensor, stage: str) -> None:
        """Notes that the attack's part `stage` broke the samples `rows`."""
        if stage not in self.stages:
            self.stages.append(stage)
        self.stage[rows.cpu()] = self.stages.index(stage)

    def won_by(self) -> list[str]:
        """The stage that broke each sample, "" where none was noted."""
        return ["" if place < 0 else self.stages[place] for place in self.stage.tolist()]

    def part(self, view: type[V], n: int) -> V:
        """A view of the same model that counts from zero on n samples, for an attack within an attack."""
        return view(self._model, n)

    def absorb(self, part: Access, rows: Tensor) -> None:
        """Books what `part` cost on the samples `rows` that it was opened for."""
        self.forward[rows.cpu()] += part.forward
        self.backward[rows.cpu()] += part.backward
        self.shared_forward += part.shared_forward
        self.shared_backward += part.shared_backward

    def _book(self, x: Tensor, rows: Tensor | None, backward: int = 0) -> None:
        if rows is None:
            self.shared_forward += len(x)
            self.shared_backward += backward * len(x)
            return
        counts = torch.bincount(rows.cpu(), minlength=len(self.forward))
        self.forward += counts
        self.backward += backward * counts


class GradientAccess(Access):
    """White box: logits and gradients of the network (of its surrogate, where it declares one)."""

    def logits(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Logits (k, classes) of x (k, ...), without gradients."""
        self._book(x, rows)
        with torch.no_grad():
            return self._model.logits(x)

    def gradient(
        self, x: Tensor, rows: Tensor | None, values: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (k, classes), values(logits) (k,), and each sample's gradient of its own value (as x)."""
        self._book(x, rows, backward=1)
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self._model.differentiable_logits(x)
            value = values(logits)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return logits.detach(), value.detach(), gradient

    def reach(self, x: Tensor, rows: Tensor | None, copies: int) -> tuple[Tensor, list[Tensor]]:
        """Logits (copies * k, classes) of noisy copies, and how far each activation's input moves.

        x (copies * k, ...) holds the copies of k samples one after the other; the list has one tensor
        (k, ...) a call.
        """
        self._book(x, rows)
        measured = Reach(copies, len(x) // copies)
        with torch.no_grad(), measured:
            logits = self._model.differentiable_logits(x)
        return logits, measured.reaches

    def smoothed_gradient(
        self,
        x: Tensor,
        rows: Tensor | None,
        values: Callable[[Tensor], Tensor],
        reaches: list[Tensor] | None,
        width: float,
    ) -> tuple[Tensor, Tensor]:
        """The network's own logits (k, classes), and gradients with derivatives averaged over windows (as x).

        Window sizes are `width` times the `reaches`. Zero where the network hands out none, or NaN. Where a
        surrogate gives the gradient, the logits cost another forward pass.
        """
        with Smoothed(reaches, width):
            logits, gradient = self._differentiate(x, rows, values)
        return (logits if self._model.surrogate is None else self.logits(x, rows)), gradient

    def blind(self, x: Tensor, rows: Tensor | None, values: Callable[[Tensor], Tensor]) -> Tensor:
        """Whether each value's true gradient at x (k, ...) is zero everywhere, or none at all (k,)."""
        _, gradient = self._differentiate(x, rows, values)
        return (gradient == 0).flatten(1).all(1)

    def _differentiate(
        self, x: Tensor, rows: Tensor | None, values: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        self._book(x, rows, backward=1)
        x, gradient = x.detach().requires_grad_(True), None
        with torch.enable_grad():
            logits = self._model.differentiable_logits(x)
            if logits.requires_grad:
                (gradient,) = torch.autograd.grad(values(logits).sum(), x, allow_unused=True)
        return logits.detach(), torch.zeros_like(x) if gradient is None else gradient.nan_to_num(
            0.0, 0.0, 0.0
        )

    def jacobian(self, x: Tensor, rows: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (k, classes) and the gradients of m linear functionals of the logits: (m, k, ...).

        `directions` (m, k, classes) holds the functionals; one forward pass, m batched backward passes.
        """
        self._book(x, rows, backward=len(directions))
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self._model.differentiable_logits(x)
            (gradients,) = torch.autograd.grad(logits, x, directions, is_grads_batched=True)
        return logits.detach(), gradients


class ScoreAccess(Access):
    """Black box that hands out logits and nothing else."""

    def logits(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Logits (k, classes) of x (k, ...)."""
        self._book(x, rows)
        with torch.no_grad():
            return self._model.logits(x)


class LabelAccess(Access):
    """Black box that hands out predicted labels and nothing else (Papernot et al. 2017's oracle)."""

    def labels(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Predicted labels (k,) of x (k, ...)."""
        self._book(x, rows)
        with torch.no_grad():
            return self._model.logits(x).argmax(1)
