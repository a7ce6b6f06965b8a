"""One detector on one model: how well it tells attacked images from clean ones, and who gets past it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve
from torch import Tensor

from attacks.base import Attack
from attacks.pgd import PGD
from bench.stats import wilson
from defenses.detect.aware import Aware
from defenses.detect.detector import CHUNK, Alarm, Detector, set_alarm
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

AT = 0.05


@dataclass(frozen=True)
class Separation:
    """Scores of clean images (negatives) against those of attacked ones (positives), at one threshold.

    auc is the area under the ROC curve, nan without positives; true_positive_rate that of the best
    threshold with at most AT false positives on these very images; confusion ((tn, fp), (fn, tp)) is at the
    threshold that was set beforehand, flagged counting as positive; roc has fpr, tpr and threshold.
    """

    auc: float
    true_positive_rate: float
    confusion: np.ndarray
    roc: pd.DataFrame


def separation(clean: Tensor, attacked: Tensor, threshold: float) -> Separation:
    """How scores (n,) of clean images and (m,) of attacked ones lie apart; flagged is above `threshold`."""
    scores = torch.cat([clean, attacked]).double().cpu().numpy()
    truth = np.repeat([0, 1], [len(clean), len(attacked)])
    counts = confusion_matrix(truth, scores > threshold, labels=[0, 1])
    if not len(attacked) or not len(clean):
        return Separation(np.nan, np.nan, counts, pd.DataFrame(columns=["fpr", "tpr", "threshold"]))
    fpr, tpr, thresholds = roc_curve(truth, scores)
    curve = pd.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": thresholds})
    reached = float(curve.loc[curve["fpr"] <= AT, "tpr"].max())
    return Separation(float(roc_auc_score(truth, scores)), reached, counts, curve)


@dataclass(frozen=True)
class Detection:
    """A detector's report: `rows` one adversary each, and how often fresh clean images are flagged.

    asked_rate is the false-positive rate that the threshold was set for, false_positives of n_clean images
    the one that was found. honest says that the latter is not above the former beyond chance.
    """

    rows: pd.DataFrame
    separations: dict[str, Separation]
    threshold: float
    asked_rate: float
    false_positives: int
    n_clean: int

    @property
    def honest(self) -> bool:
        return wilson(self.false_positives, self.n_clean)[0] <= self.asked_rate


def detect(
    model: Classifier,
    detector: Detector,
    batch: Batch,
    clean: Batch,
    aside: Batch,
    threat: ThreatModel,
    *,
    false_positive_rate: float = AT,
    attack: Attack | None = None,
    aware: Aware | None = None,
    seed: int = 0,
) -> Detection:
    """Fits on `clean`, sets the threshold on `aside`, and reports on `batch`, clean and attacked.

    `attack` (default: PGD that goes on behind the boundary) does not know the detector, `aware` does and
    starts from the former's points. Positives are misclassified images that were right before. Raises
    UserError where images are in two of the three parts or of another shape, or where set_alarm does.
    """
    fitted = torch.cat([clean.index, aside.index])
    if bool(torch.isin(batch.index, fitted).any()):
        raise UserError("images that are scored must not be among those that the detector is fitted on")
    if bool(torch.isin(aside.index, clean.index).any()):
        raise UserError(
            "images that set the threshold must not be among those that the detector is fitted on"
        )
    if batch.x.shape[1:] != clean.x.shape[1:]:
        shapes = " and ".join(str(tuple(part.x.shape[1:])) for part in (batch, clean))
        raise UserError(f"images that are scored and fitted on have shapes {shapes}: bring them to one")
    alarm = set_alarm(detector, model, clean, aside, false_positive_rate)
    unaware = attack or PGD(restarts=1, loss="margin", early_stop=False)
    result = unaware.run(model, batch, threat, Randomness(seed))
    right = batch[result.clean]
    known = result.x_adv[result.clean]
    told = (aware or Aware()).run(model, alarm, right, threat, Randomness(seed), known)
    negatives = alarm.scores(batch.x)
    rows, found = [], {}
    for name, points in (("unaware", known), ("aware", told)):
        row, found[name] = _scored(model, alarm, right.y, points, negatives)
        rows.append({"adversary": name, **row})
    flagged = int((negatives > alarm.threshold).sum())
    return Detection(pd.DataFrame(rows), found, alarm.threshold, false_positive_rate, flagged, len(negatives))


def _scored(
    model: Classifier, alarm: Alarm, y: Tensor, points: Tensor, negatives: Tensor
) -> tuple[dict[str, object], Separation]:
    """What an adversary's points (n, ...) against labels y (n,) came to, beside clean scores `negatives`."""
    with torch.no_grad():
        labels = [model.logits(part).argmax(1) for part in points.split(CHUNK)]
    positives = alarm.scores(points[torch.cat(labels) != y] if labels else points)
    apart = separation(negatives, positives, alarm.threshold)
    n, past = len(y), int((positives <= alarm.threshold).sum())
    low, high = wilson(past, n)
    row: dict[str, object] = {
        "n": n,
        "misclassified": len(positives) / max(n, 1),
        "evading": past / max(n, 1),
        "evading_low": low,
        "evading_high": high,
        "flagged": 1 - past / len(positives) if len(positives) else np.nan,
        "auc": apart.auc,
        "tpr_at_5_fpr": apart.true_positive_rate,
    }
    return row, apart
