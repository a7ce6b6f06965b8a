"""Which class a targeted attack drives at: the least likely one, or one for all samples."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.access import GradientAccess, ScoreAccess
from attacks.losses import least_likely
from models.base import Batch
from models.errors import UserError

LEAST_LIKELY = "least-likely"
NONE = "none"


def check_target(target: str, attack: str, *words: str) -> None:
    """Raises UserError unless `target` is the number of a class or one of `words`."""
    if not isinstance(target, str) or (target not in words and not target.isdecimal()):
        known = ", ".join(f"'{word}'" for word in words)
        raise UserError(f"{attack} has no target {target!r}: write {known} or a class number like '3'")


def targets(model: GradientAccess | ScoreAccess, batch: Batch, target: str) -> Tensor | None:
    """The class to drive each sample at (n,) int64, None for `target` "none".

    "least-likely" costs one forward pass. Raises UserError for a class that the model does not have
    and for samples that already have the target as their label.
    """
    if target == NONE:
        return None
    if target == LEAST_LIKELY:
        return least_likely(model.logits(batch.x, torch.arange(len(batch), device=batch.x.device)))
    chosen = int(target)
    if chosen >= model.num_classes:
        last = model.num_classes - 1
        raise UserError(f"target {chosen} is no class of the model: choose one of 0..{last}")
    same = batch.index[batch.y == chosen]
    if len(same):
        raise UserError(
            f"target {chosen} is the label of {len(same)} samples (the first has index {int(same[0])}): "
            f"leave them out, or take target '{LEAST_LIKELY}'"
        )
    return torch.full_like(batch.y, chosen)
