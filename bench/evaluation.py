"""One model and one batch in, the bracket out: the suite from Python, without a matrix or files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd
import torch
from torch import nn

from bench.bracket import judge_all
from bench.inputs import Arrays, read_box, read_inputs
from bench.judges import Judges
from bench.stats import wilson
from certify.base import CERTIFIERS
from models.base import Batch, Classifier
from models.eps import parse_eps
from models.errors import UserError
from models.norms import BALLS, described
from models.probes import signs
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box, ThreatModel
from models.threats import threat_named

# A longer name stands above the table, which it would make wider than any terminal.
LONGEST_NAME = 120


@dataclass(frozen=True)
class Evaluation:
    """The bracket: robust accuracy at (norm, eps) on these n samples lies in [certified, attacked].

    clean, certified, attacked are fractions; outcomes has one row per sample and judge that looked
    at it (index, judge, kind, success, distance, lower, certified, seconds), distances in input units,
    lower the least margin proved, seconds a sample's share; flags say what looks wrong with the model and
    what was left out. unjudged more samples were not reached in time: they are in none of the numbers.
    """

    name: str
    norm: str
    eps: float
    n: int
    clean: float
    certified: float
    attacked: float
    outcomes: pd.DataFrame
    flags: tuple[str, ...]
    unjudged: int = 0

    @property
    def gap(self) -> float:
        """What nobody knows yet: attacked - certified."""
        return self.attacked - self.certified

    def summary(self) -> pd.DataFrame:
        """One row: clean, certified and attacked with their Wilson 95 % intervals, and the gap.

        To so many digits that one sample shows.
        """
        digits = max(1, math.ceil(math.log10(max(1, self.n))) - 2)
        row: dict[str, object] = {
            "model": self.name,
            "threat": described(self.norm, self.eps),
            "n": self.n,
        }
        for column in ("clean", "certified", "attacked"):
            value = getattr(self, column)
            low, high = wilson(round(value * self.n), self.n)
            ends = ", ".join(f"{100 * end:.{digits - 1}f}" for end in (low, high))
            row[column] = f"{100 * value:.{digits}f} % [{ends}]"
        row["gap"] = f"{100 * self.gap:.{digits}f} %"
        return pd.DataFrame([row])

    def __str__(self) -> str:
        table, heading = self.summary(), []
        if len(self.name) > LONGEST_NAME:
            table, heading = table.drop(columns="model"), [self.name]
        return "\n".join([*heading, table.to_string(index=False), *self.flags])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(flag)}</p>" for flag in self.flags)
        return str(self.summary().to_html(index=False)) + notes


def evaluate(
    model: nn.Module,
    images: Arrays,
    labels: Arrays,
    *,
    norm: str = "linf",
    eps: str | float,
    attacks: Sequence[str] | None = None,
    certificates: Sequence[str] | None = None,
    box: tuple[float, float] = (0.0, 1.0),
    seconds: float | None = None,
    seed: int = 0,
) -> Evaluation:
    """Brackets the robust accuracy of `model` on labelled images (n, ...) in `box`.

    `model` is any nn.Module that maps a batch to logits and normalises inside itself; bytes become [0, 1].
    `norm` may name a threat that is no ball (models.norms), `eps` then its size. `attacks` and
    `certificates` are names, with parameters as in "pgd(steps=100)". Attacks run cheapest first, each on the
    samples that still hold; certificates on those not yet certified. After `seconds` judges stop: the
    bracket is that of the first samples, on which all of them had run, and `unjudged` counts the others.
    Raises UserError for bad inputs or unknown names, Contradiction where a proof and an attack clash.
    """
    threat = read_threat(norm, eps, read_box(box))
    # People call this where they turned gradients off to measure accuracy.
    with torch.inference_mode(False), torch.enable_grad():
        judged, batch = read_inputs(model, images, labels, threat.box)
        judges = Judges.named(attacks, certificates, norm)
        return bracket(judged, batch, threat, judges, suspicions(judged, batch, threat), seconds, seed)


def read_threat(norm: str, eps: str | float, box: Box = UNIT_BOX) -> ThreatModel:
    """The threat, whose eps must be given; raises UserError where it has no meaning."""
    threat = threat_named(norm, parse_eps(eps), box)
    if threat.eps is None:
        raise UserError("evaluate needs an eps: write it like 0.1 or 8/255")
    return threat


def suspicions(model: Classifier, batch: Batch, threat: ThreatModel) -> tuple[str, ...]:
    """One line for each sign that a number measured on this model would mislead."""
    ball = threat if threat.norm in BALLS else ThreatModel("linf", 0.0, threat.box)
    return (*_units(threat), *(f"{sign.word}: {sign.detail}" for sign in signs(model, batch, ball)))


def _units(threat: ThreatModel) -> tuple[str, ...]:
    """A line where eps is less than half a grey level of a box that is not [0, 1]: meant for another box."""
    box = threat.box
    if threat.norm != "linf" or box == UNIT_BOX or not 0 < threat.radius < box.width / 510:
        return ()
    ends = f"[{box.lower:g}, {box.upper:g}]"
    part = f"{box.width / threat.radius:.0f}th"
    return (f"units: eps = {threat.radius:g} is a {part} of the box {ends}, whose units it is in",)


def bracket(
    model: Classifier,
    batch: Batch,
    threat: ThreatModel,
    judges: Judges,
    found: tuple[str, ...] = (),
    seconds: float | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """What `evaluate` returns, of inputs that are read already; `found` is what is known of the model."""
    batch = Batch.of(batch.x, batch.y)
    verdicts = judge_all(model, batch, threat, judges, Randomness(seed), seconds, tell)
    bounds = any(threat.norm in CERTIFIERS[name].norms for name in CERTIFIERS)
    bounded = [] if bounds else [f"no certificate bounds '{threat.norm}': the lower end is 0"]
    return Evaluation(
        name=model.name,
        norm=threat.norm,
        eps=threat.radius,
        n=verdicts.judged,
        clean=verdicts.of(verdicts.clean),
        certified=verdicts.of(verdicts.certified),
        attacked=verdicts.of(~verdicts.broken),
        outcomes=verdicts.outcomes(),
        flags=(*found, *bounded, *verdicts.flags),
        unjudged=len(batch) - verdicts.judged,
    )
