"""The contract of a detector: a subclass scores, and clean images alone set the threshold."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defenses.parameters import check_parameters
from models.base import Batch, Classifier, frozen
from models.errors import UserError
from models.registry import Registry

CHUNK = 256


class Score(nn.Module, ABC):
    """Maps images (n, c, h, w) to scores (n,): the higher, the more suspicious."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The scores that decide."""

    def differentiable(self, x: Tensor) -> Tensor:
        """Scores (n,) whose gradient an adversary follows; the true ones where theirs is right."""
        scores: Tensor = self(x)
        return scores


@dataclass(frozen=True, kw_only=True)
class Detector(ABC):
    """Frozen hyper-parameters and one method to write, `fit`."""

    name: ClassVar[str]
    paper: ClassVar[str]

    def __post_init__(self) -> None:
        """A subclass that checks more calls this first. Raises UserError for what is no number here."""
        check_parameters(self)

    @abstractmethod
    def fit(self, model: Classifier, clean: Batch) -> Score:
        """The score of images that `model` is given, learnt from clean images (n, c, h, w) alone."""

    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return asdict(self)


DETECTORS: Registry[type[Detector]] = Registry("detector")


def register_detector(name: str) -> Callable[[type[Detector]], type[Detector]]:
    """Registers the decorated class (outermost decorator) under `name`."""

    def decorate(cls: type[Detector]) -> type[Detector]:
        cls.name = name
        return DETECTORS.add(name, cls)

    return decorate


@dataclass(frozen=True)
class Alarm:
    """A score that flags what lies above its threshold; spread is the deviation of its clean scores.

    false_positive_rate is the rate that was asked for.
    """

    score: Score
    threshold: float
    spread: float
    false_positive_rate: float

    def scores(self, x: Tensor) -> Tensor:
        """The scores (n,) of images, without gradient."""
        with torch.no_grad():
            return torch.cat([self.score(part) for part in x.split(CHUNK)]) if len(x) else x.new_zeros(0)

    def flags(self, x: Tensor) -> Tensor:
        """Which images are flagged: bool (n,)."""
        return self.scores(x) > self.threshold


def set_alarm(
    detector: Detector, model: Classifier, clean: Batch, aside: Batch, false_positive_rate: float
) -> Alarm:
    """Fits `detector` on `clean` and sets its threshold on the other clean images `aside`.

    Flagged is what scores above the ceil((1 - rate) (n + 1))-th smallest of the n scores of `aside`: a
    fresh clean image is flagged with a probability of at most the rate, whatever the scores' distribution.
    Raises UserError for a rate outside (0, 1), no clean images, too few for that rate, images that are not
    what the model takes, or scores that are no numbers.
    Source: Vovk, Gammerman, Shafer 2005 (split conformal prediction).
    """
    if not 0 < false_positive_rate < 1:
        raise UserError(f"a false-positive rate lies between 0 and 1, not at {false_positive_rate:g}")
    if not len(clean):
        raise UserError("a detector is fitted on clean images: pass some")
    place = math.ceil((1 - false_positive_rate) * (len(aside) + 1) - 1e-9)
    if place > len(aside):
        needed = math.ceil(1 / false_positive_rate - 1 - 1e-9)
        raise UserError(
            f"a false-positive rate of {false_positive_rate:g} needs {needed} clean images beside those it "
            f"is fitted on, not {len(aside)}"
        )
    for part, called in ((clean, "fitted on"), (aside, "that set the threshold")):
        _check_images(part, model, clean.x.shape[1:], called)
    with frozen(model):
        score = detector.fit(model, clean)
        scores = Alarm(score, math.inf, 1.0, false_positive_rate).scores(aside.x)
    if scores.shape != (len(aside),) or not bool(torch.isfinite(scores).all()):
        raise UserError(f"detector '{detector.name}' gave no finite score for every clean image")
    threshold = float(scores.sort().values[place - 1])
    return Alarm(score, threshold, float(scores.double().std(correction=0)), false_positive_rate)


def _check_images(images: Batch, model: Classifier, shape: torch.Size, called: str) -> None:
    """Raises UserError where clean images are not of `shape`, or not finite numbers of the model's box."""
    if images.x.shape[1:] != shape:
        theirs = tuple(images.x.shape[1:])
        raise UserError(
            f"clean images {called} have shape {theirs}, others {tuple(shape)}: bring them to one"
        )
    if not bool(model.box.contains(images.x).all()):
        low, high = float(images.x.min()), float(images.x.max())
        raise UserError(
            f"clean images {called} have values outside [{model.box.lower:g}, {model.box.upper:g}], or NaN "
            f"(they span [{low:g}, {high:g}]): bring them into the model's box"
        )
