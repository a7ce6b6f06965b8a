"""How far minimal-norm attacks are from the truth: their distances over the proven smallest ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.base import ATTACKS
from bench.bracket import Contradiction
from bench.inputs import read_inputs
from certify.smallest import Smallest, smallest_perturbations
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel, per_sample, vector_norm

# The minimal-norm attacks that are tried where none is named.
USUAL = ("deepfool", "fab", "fmn", "cw", "minimum-norm")

# An attack counts as optimal within this share of the proven minimum.
NEAR = 0.01


@dataclass(frozen=True)
class Optimality:
    """The proven interval of each sample's smallest perturbation, and what each attack found.

    samples has one row per sample: index, correct, lower, upper, closed, seconds, length (||x||) and one
    column per attack, its distance, NaN where it found nothing. Clean errors are rows, but in no mean.
    """

    norm: str
    attacks: tuple[str, ...]
    samples: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """One row per attack, the last one the proven minimum itself; means are over the samples fooled.

        fooled counts them; optimality is the interval that the mean of distance / minimum lies in;
        within 1 %, the share of samples whose distance is at most 1.01 times the minimum (proved, and at
        most); rho_adv the mean of distance / ||x||.
        """
        kept = self.samples[self.samples["correct"]]
        rows = [self._row(name, kept) for name in self.attacks]
        lower, upper = kept["lower"], kept["upper"]
        shown = [_span(part.mean(), other.mean(), 4) for part, other in self._ends(lower, upper, kept)]
        rows.append(
            {"attack": "proven minimum", "fooled": f"{int(np.isfinite(upper).sum())} of {len(kept)}",
             "mean distance": shown[0], "optimality": "1", "within 1 %": "", "rho_adv": shown[1]}
        )  # fmt: skip
        return pd.DataFrame(rows)

    @staticmethod
    def _ends(lower: pd.Series, upper: pd.Series, kept: pd.DataFrame) -> list[tuple[pd.Series, pd.Series]]:
        return [(lower, upper), (lower / kept["length"], upper / kept["length"])]

    def _row(self, name: str, kept: pd.DataFrame) -> dict[str, str]:
        found = kept[kept[name].notna()]
        distance = found[name]
        limit = (1 + NEAR) * (1 + 1e-12)
        sure, maybe = (int((distance <= limit * found[end]).sum()) for end in ("lower", "upper"))
        ratios = (distance / found["upper"]).mean(), (distance / found["lower"]).mean()
        return {
            "attack": name,
            "fooled": f"{len(found)} of {len(kept)}",
            "mean distance": f"{distance.mean():.4f}",
            "optimality": _span(*ratios, 3),
            "within 1 %": _span(100 * sure / max(1, len(kept)), 100 * maybe / max(1, len(kept)), 0) + " %",
            "rho_adv": f"{(distance / found['length']).mean():.4f}",
        }


def _span(low: float, high: float, digits: int) -> str:
    """One number where both ends are printed alike, else [low, high]."""
    ends = f"{low:.{digits}f}", f"{high:.{digits}f}"
    return ends[0] if ends[0] == ends[1] else f"[{ends[0]}, {ends[1]}]"


def optimality(
    model: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    norm: str = "linf",
    attacks: Sequence[str] | None = None,
    box: tuple[float, float] = (0.0, 1.0),
    seconds: float = 60.0,
    tolerance: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, pd.Series], None] | None = None,
) -> Optimality:
    """Runs minimal-norm attacks on labelled images (n, ...), then proves how near to the minimum they came.

    The nearest point that any attack found is where certify.smallest starts from; `seconds` and `tolerance`
    are a sample's, as there. `progress` is called with each finished sample's place and row.
    Raises UserError for bad inputs and for attacks that look for no smallest perturbation, Contradiction for
    one that comes nearer than was proved possible.
    """
    judged, batch = read_inputs(model, images, labels, Box(*box))
    threat = ThreatModel(norm, None, judged.box)
    names = _names(attacks, norm)
    randomness = Randomness(seed)
    distances, nearest = _attacked(names, judged, batch, threat, randomness)
    with torch.no_grad():
        correct = judged.right(batch.x, batch.y)
    rows = []
    for i in range(len(batch)):
        piece = slice(i, i + 1)
        proved = smallest_perturbations(
            judged, batch[piece], threat, randomness, start=nearest[piece], seconds=seconds,
            tolerance=tolerance,
        )  # fmt: skip
        found = {name: float(distances[name][i]) for name in names}
        row = _sample(batch[piece], bool(correct[i]), proved, norm, found)
        rows.append(row)
        if progress is not None:
            progress(i, pd.Series(row))
    return Optimality(norm, names, pd.DataFrame(rows))


def _names(wanted: Sequence[str] | None, norm: str) -> tuple[str, ...]:
    if wanted is None:
        return tuple(name for name in USUAL if norm in ATTACKS[name].norms)
    for name in wanted:
        if not ATTACKS[name].minimal:
            known = ", ".join(sorted(other for other in ATTACKS if ATTACKS[other].minimal))
            raise UserError(f"attack '{name}' looks for no smallest perturbation: choose from {known}")
    return tuple(dict.fromkeys(wanted))


def _attacked(
    names: Sequence[str], model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
) -> tuple[dict[str, Tensor], Tensor]:
    """Each attack's distances (n,), NaN where it failed, and the nearest misclassified points (n, ...)."""
    nearest, least = batch.x, torch.full((len(batch),), torch.inf, dtype=torch.float64)
    distances = {}
    for name in names:
        result = ATTACKS[name]().run(model, batch, threat, randomness)
        away = result.distance.cpu()
        distances[name] = away
        better = torch.nan_to_num(away, nan=torch.inf) < least
        nearest = torch.where(per_sample(better.to(batch.x.device), nearest), result.x_adv, nearest)
        least = torch.where(better, away, least)
    return distances, nearest


def _sample(
    one: Batch, correct: bool, proved: Smallest, norm: str, found: dict[str, float]
) -> dict[str, object]:
    index, lower = int(one.index), float(proved.lower)
    for name, distance in found.items():
        if distance < lower * (1 - 1e-9):
            raise Contradiction(
                f"attack {name} breaks sample {index} at {distance:g}, below its proven least distance "
                f"{lower:g}: one of the two is wrong, report this"
            )
    return {
        "index": index,
        "correct": correct,
        "lower": lower,
        "upper": float(proved.upper),
        "closed": bool(proved.closed),
        "seconds": float(proved.seconds),
        "length": float(vector_norm(one.x.double(), norm)),
        **found,
    }
