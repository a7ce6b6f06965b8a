"""Squeezing: what a coarser image is taken for hardly differs, unless somebody has tuned the fine one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.bit_depth import BitDepth, Rounded
from defenses.detect.detector import Detector, Score, register_detector
from defenses.inputs import StraightThrough
from defenses.median import Median, MedianFiltered
from models.base import Batch, Classifier


class Disagreement(Score):
    """max over squeezers of ||softmax f(x) - softmax f(squeezed x)||_1, in [0, 2]."""

    def __init__(self, model: Classifier, squeezers: list[nn.Module], followed: list[nn.Module]) -> None:
        super().__init__()
        self.model = model
        self.squeezers, self.followed = nn.ModuleList(squeezers), nn.ModuleList(followed)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.model.logits(x).softmax(1)
        changes = [
            (plain - self.model.logits(squeeze(x)).softmax(1)).abs().sum(1) for squeeze in self.squeezers
        ]
        return torch.stack(changes).amax(0)

    def differentiable(self, x: Tensor) -> Tensor:
        # Held fixed, so that the squeezed predictions follow the plain one and not the reverse.
        followed = self.model.logits(x).detach().log_softmax(1)
        bounds = []
        for squeeze in self.followed:
            squeezed = self.model.differentiable_logits(squeeze(x)).log_softmax(1)
            divergence = (followed.exp() * (followed - squeezed)).sum(1)
            # Pinsker: no less than the l1 distance, and steep where softmax is flat.
            bounds.append((2 * divergence.clamp(min=0) + 1e-12).sqrt())
        # The sum and not the largest: every squeezer has to agree before the alarm is silent.
        return torch.stack(bounds).sum(0)


@register_detector("feature-squeezing")
@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing(Detector):
    """Scores how far the prediction moves when the image loses grey levels or passes a median filter.

    The larger of the two l1 distances between softmax vectors. Nothing is fitted. The median is 3 x 3, the
    source's for MNIST 2 x 2. Raises UserError for bits outside 1..8 or an even size.
    Source: Xu, Evans, Qi 2018, 1704.01155, section IV (joint detection, equation 6).
    """

    paper = "Xu, Evans, Qi 2018, 1704.01155"

    bits: int = 1
    size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        BitDepth(bits=self.bits)
        Median(size=self.size)

    def fit(self, model: Classifier, clean: Batch) -> Score:
        rounded, filtered = Rounded(2**self.bits), MedianFiltered(self.size)
        return Disagreement(model, [rounded, filtered], [StraightThrough(rounded), filtered])
