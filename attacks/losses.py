"""What an adversary increases: functions of logits (n, classes) and labels (n,) to one value a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from models.base import margin
from models.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-ln softmax(z)_y, summed by nobody: one value a sample."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive exactly where the sample is misclassified; any class count >= 2."""
    return -margin(logits, y)


def difference_of_logits_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3)) over the sorted logits; the margin below 4 classes.

    Neither a shift nor a scale of the logits changes it. With 2 classes there is no third logit.
    Source: Croce, Hein 2020, 2003.01690, eq. 6.
    """
    if logits.shape[1] < 4:
        return margin_loss(logits, y)
    top = logits.topk(3, dim=1).values
    return margin_loss(logits, y) / (top[:, 0] - top[:, 2]).clamp(min=1e-12)


def log_odds(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """ln p_target - ln p_y = z_target - z_y: the softmax's normaliser cancels."""
    return logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]


def clearly_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Whether each sample is misclassified by more than rounding (n,), so that a verdict elsewhere agrees.

    As for the judge, a margin that is no number is an error.
    """
    loss = margin_loss(logits, y)
    return (loss > rounding(logits)) | loss.isnan() | (loss == torch.inf)


def rounding(logits: Tensor) -> Tensor:
    """What float32 may add to a difference of logits (n,), relative to their spread and magnitude.

    The spread alone would vanish on the boundary between two classes.
    """
    return 1e-5 * (logits.amax(1) - logits.amin(1)) + 1e-6 * logits.abs().amax(1)


def against(loss: Loss, y: Tensor) -> Callable[[Tensor], Tensor]:
    """`loss` as a function of the logits alone."""
    return lambda logits: loss(logits, y)


def aimed(loss: str, y: Tensor, target: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What to increase: `loss` at the labels y, or with targets (n,) what favours those.

    With a target, ce and the margin are taken at the target and negated; log-odds exists only there.
    """
    if target is None:
        return against(LOSSES[loss], y)
    if loss == "log-odds":
        return lambda logits: log_odds(logits, y, target)
    return lambda logits: -LOSSES[loss](logits, target)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin_loss, "dlr": difference_of_logits_ratio}


def check_loss(loss: str, attack: str) -> None:
    """Raises UserError for the name of a loss that an attack does not have."""
    if loss not in LOSSES:
        raise UserError(f"{attack} has no loss '{loss}': choose {', '.join(LOSSES)}")


def least_likely(logits: Tensor) -> Tensor:
    """The class of smallest logit of each sample: the target of step-LL (Kurakin et al. 2017)."""
    return torch.argmin(logits, dim=1)
