"""What an adversary increases: functions of logits (n, classes) and labels (n,) to one value a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from models.base import margin

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-ln softmax(z)_y, summed by nobody: one value a sample."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive exactly where the sample is misclassified; any class count >= 2."""
    return -margin(logits, y)


def log_odds(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """ln p_target - ln p_y = z_target - z_y: the softmax's normaliser cancels."""
    return logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


def clearly_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each sample is misclassified by more than rounding (n,), so that a verdict elsewhere agrees."""
    return margin_loss(logits, y) > rounding(logits)


def rounding(logits: Tensor) -> Tensor:
    """What float32 may add to a difference of logits (n,), relative to their spread and magnitude.

    The spread alone would vanish on the boundary between two classes.
    """
    return 1e-5 * (logits.amax(1) - logits.amin(1)) + 1e-6 * logits.abs().amax(1)


def against(loss: Loss, y: Tensor) -> Callable[[Tensor], Tensor]:
    """`loss` as a function of the logits alone."""
    return lambda logits: loss(logits, y)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin_loss}


def least_likely(logits: Tensor) -> Tensor:
    """The class of smallest logit of each sample: the target of step-LL (Kurakin et al. 2017)."""
    return torch.argmin(logits, dim=1)
