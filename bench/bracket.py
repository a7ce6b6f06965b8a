"""Attacks and certificates on one batch, each on the samples that those before it left, within a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attacks.base import Attack
from bench.clock import Clock, TimeIsUp
from bench.judges import Judges
from certify.base import Certifier
from models.base import Batch, Classifier, frozen
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.threat import ThreatModel

COLUMNS = ["index", "judge", "kind", "success", "distance", "lower", "certified", "seconds"]


class Contradiction(UserError):
    """A certified sample that an attack breaks: one of the two is wrong, and no number can be trusted."""


@dataclass
class Verdicts:
    """What is known of each sample (n,), the rows behind it, and what a user should know of them.

    `judged` samples are done: all judges have run on them. What does not apply is in `inapplicable`: by its
    kind and the reason, the names.
    """

    clean: Tensor
    broken: Tensor
    certified: Tensor
    judged: int = 0
    rows: list[pd.DataFrame] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    inapplicable: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)

    def outcomes(self) -> pd.DataFrame:
        """One row a sample and judge that looked at it, judges in their order."""
        rows = [frame for frame in self.rows if len(frame)]
        whole = pd.concat(rows, ignore_index=True) if rows else _rows("", "", torch.zeros(0), 0.0)
        return whole[COLUMNS]

    def omissions(self) -> list[str]:
        """A line for each reason why judges do not apply."""
        return [
            f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)} left out: {reason}"
            for (kind, reason), names in self.inapplicable.items()
        ]

    def of(self, verdict: Tensor) -> float:
        """The fraction of the judged samples for which a verdict holds."""
        return float(verdict[: self.judged].double().mean())


def judge_all(
    model: Classifier,
    batch: Batch,
    threat: ThreatModel,
    judges: Judges,
    randomness: Randomness,
    seconds: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Verdicts:
    """Runs the judges on a batch with indices 0..n-1, and stops after `seconds`; `tell` hears how it goes.

    Under a time limit samples are judged piece by piece, first to last. What the limit cuts short is thrown
    away whole: a verdict never rests on some of the judges. Raises UserError where it leaves no sample,
    Contradiction for a sample that is certified and broken.
    """
    clean = _clean(model, batch)
    judges, left_out = judges.affordable(model, batch)
    found = Verdicts(clean, ~clean, torch.zeros_like(clean), flags=left_out)
    clock = Clock(seconds)
    with clock.watching(model.network):
        while found.judged < len(batch):
            piece = slice(found.judged, found.judged + clock.piece(found.judged, len(batch)))
            known = len(found.rows), len(found.flags)
            try:
                _judge_piece(model, batch, piece, threat, judges, randomness, found, tell)
            except TimeIsUp:
                del found.rows[known[0] :], found.flags[known[1] :]
                break
            found.judged = min(piece.stop, len(batch))
    if not found.judged:
        raise UserError(
            f"no image is judged after {clock.seconds:g} seconds: give more, or name fewer judges"
        )
    found.flags = list(dict.fromkeys(found.flags)) + found.omissions() + _blind(found)
    if found.judged < len(batch):
        rest = f"{len(batch) - found.judged} of {len(batch)} images are not judged"
        found.flags.append(
            f"time is up after {clock.seconds:g} s: {rest}, the bracket is that of the first {found.judged}"
        )
    _check_agreement(found)
    return found


def _clean(model: Classifier, batch: Batch) -> Tensor:
    with frozen(model), torch.no_grad():
        return torch.cat([model.right(part.x, part.y) for part in batch.split(256)]).cpu()


def _judge_piece(
    model: Classifier,
    batch: Batch,
    piece: slice,
    threat: ThreatModel,
    judges: Judges,
    randomness: Randomness,
    found: Verdicts,
    tell: Callable[[str], None],
) -> None:
    places = torch.arange(len(batch))[piece]
    broken, certified = found.broken.clone(), found.certified.clone()
    for name, attack in judges.attacks.items():
        left = places[~broken[places]].to(batch.x.device)
        try:
            rows = _attack(name, attack, model, batch[left], threat, randomness)
        except NotApplicable as reason:
            found.inapplicable.setdefault(("attack", str(reason)), {})[name] = None
            continue
        found.rows.append(rows)
        broken[_indices(rows, "success")] = True
        tell(f"{name}: breaks {int(rows['success'].sum())} of {len(rows)}, {rows['seconds'].sum():.1f} s")
    for number, (name, certifier) in enumerate(judges.certificates.items()):
        # The first looks at broken samples too: what it proved of one would convict it or the attack.
        wanted = found.clean if not number else ~(certified | broken)
        left = places[wanted[places]].to(batch.x.device)
        try:
            rows = _certify(name, certifier, model, batch[left], threat, randomness)
        except NotApplicable as reason:
            found.inapplicable.setdefault(("certificate", str(reason)), {})[name] = None
            continue
        found.rows.append(rows)
        certified[_indices(rows, "certified")] = True
        broken[_indices(rows, "success")] = True
        tell(f"{name}: proves {int(rows['certified'].sum())} of {len(rows)}, {rows['seconds'].sum():.1f} s")
    found.broken, found.certified = broken, certified


def _attack(
    name: str, attack: Attack, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
) -> pd.DataFrame:
    start = time.perf_counter()
    if not len(batch):
        return _rows(name, "attack", batch.index, start)
    result = attack.run(model, batch, threat, randomness)
    columns = {"success": result.success, "distance": result.distance, "zero_gradient": result.zero_gradient}
    return _rows(name, "attack", batch.index, start, **columns)


def _certify(
    name: str, judge: Certifier, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
) -> pd.DataFrame:
    start = time.perf_counter()
    if not len(batch):
        return _rows(name, "certificate", batch.index, start)
    result = judge.run(model, batch, threat, randomness)
    columns = {"certified": result.certified, "lower": result.margin}
    if result.broken is not None and result.distance is not None:
        columns |= {"success": result.broken, "distance": result.distance}
    return _rows(name, "certificate", batch.index, start, **columns)


def _rows(name: str, kind: str, index: Tensor, start: float, **columns: Tensor) -> pd.DataFrame:
    n = len(index)
    values = {key: value.cpu().numpy() for key, value in columns.items()}
    rows: dict[str, Any] = {"index": index.cpu().numpy().astype("int64"), "judge": name, "kind": kind}
    for column in ("success", "certified", "zero_gradient"):
        rows[column] = values.get(column, np.zeros(n, dtype=bool))
    for column in ("distance", "lower"):
        rows[column] = values.get(column, np.full(n, np.nan))
    return pd.DataFrame(rows | {"seconds": (time.perf_counter() - start) / max(n, 1)})


def _indices(frame: pd.DataFrame, column: str) -> Tensor:
    """The places of the samples for which a column holds."""
    return torch.from_numpy(frame.loc[frame[column].astype(bool), "index"].to_numpy(dtype="int64", copy=True))


def _blind(found: Verdicts) -> list[str]:
    """One line for each attack that saw no gradient on some samples."""
    if not any(len(frame) for frame in found.rows):
        return []
    whole = pd.concat(found.rows, ignore_index=True)
    counts = whole.groupby("judge", sort=False)["zero_gradient"].agg(["sum", "size"])
    return [
        f"attack {name} saw a zero gradient and nothing else on {row['sum']} of {row['size']} samples"
        for name, row in counts[counts["sum"] > 0].iterrows()
    ]


def _check_agreement(found: Verdicts) -> None:
    """Raises Contradiction where a sample is certified and broken."""
    clash = (found.certified & found.broken).nonzero()[:, 0].tolist()
    if clash:
        raise Contradiction(f"samples {clash} are certified and broken: one judge is wrong, report this")
