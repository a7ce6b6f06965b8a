"""What is judged: batches of labelled inputs, and classifiers that map inputs to logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import UserError
from models.precision import full_precision
from models.threat import UNIT_BOX, Box


@dataclass(frozen=True)
class Batch:
    """Labelled inputs: x (n, ...) inside the box, y (n,) int64 labels, index (n,) places in the data set."""

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        return Batch(self.x[rows], self.y[rows], self.index[rows])

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.x.to(device), self.y.to(device), self.index.to(device))

    def split(self, size: int) -> Iterator[Batch]:
        """Consecutive batches of at most `size` samples."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @staticmethod
    def of(x: Tensor, y: Tensor) -> Batch:
        """A batch whose indices are 0..n-1."""
        return Batch(x, y, torch.arange(len(x), device=x.device))


# What a network's own code raises; torch's errors, as memory that ran out, are for whoever asked.
OWN = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class Classifier(nn.Module):
    """A network that maps inputs in `box` to logits (n, num_classes), frozen for judging.

    Any nn.Module that returns logits works; they are handed on in the precision of the inputs.
    `surrogate` stands in for the network where gradients are wanted (BPDA, Athalye et al. 2018) and must
    agree with it in shape; `stochastic` declares that two calls may differ. Normalisation belongs inside
    the network.
    Raises UserError from `logits` on a wrong output shape, and where the network raises what is its own.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        box: Box = UNIT_BOX,
        name: str = "",
        stochastic: bool = False,
        surrogate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.surrogate = surrogate
        self.num_classes = num_classes
        self.box = box
        self.name = name or type(network).__name__
        self.stochastic = stochastic

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, num_classes) of inputs (n, ...)."""
        return self._checked(self._asked(self.network, x)).to(x.dtype)

    def differentiable_logits(self, x: Tensor) -> Tensor:
        """Logits whose gradient an adversary follows: the surrogate's where one is declared."""
        if self.surrogate is None:
            return self.logits(x)
        return self._checked(self._asked(self.surrogate, x)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x)

    def right(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the first of the largest logits at x (n, ...) is the label's (n,).

        Where a module of the network says that it is `abstaining`, equal logits are right for no label.
        """
        logits = self.logits(x)
        return (logits.argmax(1) == y) & ~self._abstains(logits)

    def errs(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether the first of the largest `logits` (n, classes) is not the label's, or no number (n,).

        An abstention is no error.
        """
        return ((logits.argmax(1) != y) | margin(logits, y).isnan()) & ~self._abstains(logits)

    def _abstains(self, logits: Tensor) -> Tensor:
        abstaining = any(getattr(module, "abstaining", False) for module in self.network.modules())
        return (logits == logits[:, :1]).all(1) & abstaining

    def _asked(self, network: nn.Module, x: Tensor) -> Any:
        try:
            return network(x)
        except OWN as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"model '{self.name}' raises {type(error).__name__} on inputs in its box ({reason}): "
                "let it return logits for every input, also for those that it would turn away"
            ) from error

    def _checked(self, z: Tensor) -> Tensor:
        if not isinstance(z, Tensor) or z.dim() != 2 or z.shape[1] != self.num_classes:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise UserError(
                f"model '{self.name}' returned {got}, not logits of shape (n, {self.num_classes}): "
                "check the class count"
            )
        return z

    @property
    def device(self) -> torch.device:
        tensor = next(self.parameters(), None)
        return tensor.device if tensor is not None else torch.device("cpu")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluates `model` in eval mode, full precision, without parameter gradients; then restores all flags.

    Computed parameters, as a deep copy of a TorchScript module has them, stay as they are.
    """
    modes = [(module, module.training) for module in model.modules()]
    grads = [(one, one.requires_grad) for one in model.parameters() if one.is_leaf]
    model.eval()
    for parameter, _ in grads:
        parameter.requires_grad_(False)
    try:
        with full_precision():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in grads:
            parameter.requires_grad_(flag)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - max_{j != y} z_j of each sample (n,): positive where the label wins strictly."""
    rest = logits.scatter(1, y[:, None], -torch.inf)
    return logits.gather(1, y[:, None])[:, 0] - rest.amax(1)


def check_inputs(batch: Batch, model: Classifier, box: Box | None = None) -> None:
    """Raises UserError where inputs or labels are not what the model declares, or leave a threat's `box`."""
    x, y = batch.x, batch.y
    if len(x) != len(y):
        raise UserError(f"{len(x)} inputs but {len(y)} labels: pass one label per input")
    if len(x) != len(batch.index):
        raise UserError(f"{len(x)} inputs but {len(batch.index)} indices: Batch.of(x, y) counts them from 0")
    if not x.is_floating_point() or y.dtype != torch.int64:
        raise UserError(f"inputs of {x.dtype} and labels of {y.dtype}: pass floating-point ones and int64")
    if not torch.isfinite(x).all():
        raise UserError("inputs contain NaN or infinity: clean the data first")
    if not bool(model.box.contains(x).all()):
        low, high = float(x.min()), float(x.max())
        raise UserError(
            f"inputs span [{low:g}, {high:g}] but the box is [{model.box.lower:g}, {model.box.upper:g}]: "
            "rescale them, and normalise inside the model"
        )
    if box is not None and not bool(box.contains(x).all()):
        raise UserError(
            f"inputs span [{float(x.min()):g}, {float(x.max()):g}] but the threat's box is "
            f"[{box.lower:g}, {box.upper:g}]: write ThreatModel(norm, eps, model.box)"
        )
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= model.num_classes):
        raise UserError(
            f"labels span {int(y.min())}..{int(y.max())} but the model has {model.num_classes} classes"
        )


def check_logits(logits: Tensor, name: str, *, lenient: bool = False) -> None:
    """Raises UserError where a model returned NaN or +infinity, or, unless lenient, probabilities."""
    if torch.isnan(logits).any():
        raise UserError(f"model '{name}' returned NaN: check its weights and its input scaling")
    if torch.isposinf(logits).any() or torch.isneginf(logits).all(1).any():
        raise UserError(f"model '{name}' returned infinity: check its weights and its input scaling")
    if lenient:
        return
    if len(logits) and bool((logits >= 0).all()) and bool(((logits.double().sum(1) - 1).abs() < 1e-4).all()):
        raise UserError(
            f"model '{name}' returned probabilities (rows sum to 1): remove its softmax and return logits"
        )
