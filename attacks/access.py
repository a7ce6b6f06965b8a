"""What an adversary may see of a model, with an exact count of what it used.

Each view counts per sample of the batch under attack (`rows` are positions in that batch,
repeated where one sample is evaluated several times); `rows=None` books the cost on the
attack as a whole, for what is fitted on other images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.base import Classifier


class Access:
    """The counters shared by all views: forward and backward passes of each of n samples."""

    def __init__(self, model: Classifier, n: int) -> None:
        self._model = model
        self.num_classes = model.num_classes
        self.box = model.box
        self.forward = torch.zeros(n, dtype=torch.int64)
        self.backward = torch.zeros(n, dtype=torch.int64)
        self.shared_forward = 0
        self.shared_backward = 0

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
