"""Two or three sides, sample by sample: what changed in the bracket, in each judge, and on which samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.cell import Threat
from bench.paired import Paired, paired
from bench.record import Record
from bench.report.records_page import verdict
from bench.report.report import Report
from bench.report.subject import NORMS, Subject, spoken
from models.errors import UserError

SIGNIFICANT = 0.05
LADDER = ("misclassified", "broken", "open", "certified")
Key = tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a run, or one model of a run."""

    name: str
    report: Report
    model: str = ""

    def subjects(self) -> dict[Key, Subject]:
        """The models of this side: under (data,) where one was chosen, else under (data, defended)."""
        if not self.model:
            return {(s.data, s.defended): s for s in self.report.subjects}
        return {(s.data,): s for s in self.report.subjects if s.defended == self.model}


def side(text: str) -> Side:
    """The side that FOLDER or FOLDER@MODEL names; raises UserError where there is no such run or model."""
    folder, at, model = text.partition("@")
    if not at or Path(text).exists():
        return Side(text, Report.of(text))
    found = Side(text, Report.of(folder), model)
    if not found.subjects():
        known = ", ".join(sorted({subject.defended for subject in found.report.subjects}))
        raise UserError(f"no model '{model}' in {folder}: there are {known}")
    return found


def sides(texts: Sequence[str]) -> list[Side]:
    """Two or three sides that share something; raises UserError otherwise.

    Models are compared with models (every text names one) or runs with runs.
    """
    if not 2 <= len(texts) <= 3:
        raise UserError(f"compare takes two or three runs, not {len(texts)}")
    if len(set(texts)) < len(texts):
        raise UserError("the sides of a comparison must differ")
    found = [side(text) for text in texts]
    short = [Path(text.partition("@")[0]).name + "".join(text.partition("@")[1:]) for text in texts]
    if len(set(short)) == len(short):
        found = [replace(one, name=name) for one, name in zip(found, short, strict=True)]
    if len({bool(one.model) for one in found}) > 1:
        raise UserError("name a model on every side (RUN@MODEL) or on none")
    for other in found[1:]:
        if not set(found[0].subjects()) & set(other.subjects()):
            raise UserError(f"{found[0].name} and {other.name} share no model: compare models with RUN@MODEL")
        _check_same_images(found[0], other)
    return found


def _check_same_images(first: Side, second: Side) -> None:
    """Raises UserError where data of the same name differ: pairs of samples would be no pairs."""
    hashes: list[dict[str, str]] = []
    for one in (first, second):
        proofs = [(r.cell.data, r.header.provenance) for r in one.report.material.records]
        hashes.append({data: proof.data_sha256 for data, proof in proofs if proof is not None})
    for data in hashes[0].keys() & hashes[1].keys():
        if hashes[0][data] != hashes[1][data]:
            raise UserError(f"{first.name} and {second.name} hold two different data sets '{data}'")


def same_weights(first: Subject, second: Subject) -> bool:
    """Whether both sides judged the same network, so that a change is the search's and not the model's."""
    weights = [one.records[0].cell.weights.partition("<")[0] for one in (first, second)]
    return weights[0] == weights[1]


def _shared(first: str, second: str) -> str:
    """The model's name, "" where two different ones are compared: the page's title names them."""
    return first if first == second else ""


def counted(first: pd.Series, second: pd.Series) -> Paired:
    """The paired difference of two yes-or-no series over the same samples."""
    a, b = first.to_numpy(bool), second.to_numpy(bool)
    return paired(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))


def judged(change: Paired, fell_is_worse: bool) -> str:
    """worse, better or same; "within chance" where McNemar's p is not below 0.05."""
    if change.gained == change.lost:
        return "same" if change.gained == 0 else "moved, no net change"
    worse = (change.difference < 0) == fell_is_worse
    word = "worse" if worse else "better"
    return word if change.p < SIGNIFICANT else f"{word}, within chance"


ORDER = ("worse", "worse, within chance", "moved, no net change", "better, within chance", "better", "same")


def _spread(change: Paired) -> dict[str, Any]:
    return {
        "difference": change.difference,
        "low": change.low,
        "high": change.high,
        "gained": change.gained,
        "lost": change.lost,
        "p": change.p,
    }


def brackets(first: Side, second: Side) -> pd.DataFrame:
    """One row an end of a bracket that both sides have, regressions first, on the samples both have.

    Where the weights are the same, a wider gap is worse: attacked that rose, certified that fell.
    Where they differ, a less robust model is worse: attacked or certified that fell.
    """
    rows = []
    mine, theirs = first.subjects(), second.subjects()
    for key in [key for key in mine if key in theirs]:
        a, b = mine[key], theirs[key]
        same = same_weights(a, b)
        for norm, eps in [threat for threat in a.threats if threat in b.threats]:
            left = a.samples(norm, eps).set_index("index")
            right = b.samples(norm, eps).set_index("index")
            shared = left.index.intersection(right.index)
            left, right = left.loc[shared], right.loc[shared]
            for end in ("attacked", "certified"):
                before, after = (~left[end], ~right[end]) if end == "attacked" else (left[end], right[end])
                change = counted(before, after)
                rows.append(
                    {
                        "data": a.data,
                        "model": _shared(a.defended, b.defended),
                        "norm": norm,
                        "eps": eps,
                        "end": end,
                        "n": len(shared),
                        "before": float(before.mean()) if len(shared) else np.nan,
                        "after": float(after.mean()) if len(shared) else np.nan,
                        **_spread(change),
                        "verdict": judged(change, fell_is_worse=not same or end == "certified"),
                    }
                )
    return _regressions_first(rows, ["data", "model", "norm", "eps", "end"])


def judges(first: Side, second: Side) -> pd.DataFrame:
    """One row a judge that both sides ran: paired outcomes, the ratio of distances, time and passes.

    Before and after are what an attack left or a certificate proved; NaN for attacks that seek the
    smallest perturbation, where `distance_ratio`, the median of after / before over samples that both
    broke, speaks. An attack that leaves more is worse on the same weights, as in `bench check`.
    """
    rows = []
    mine, theirs = first.subjects(), second.subjects()
    for key in [key for key in mine if key in theirs]:
        other = {_judge(record): record for record in theirs[key].records if record.header.status == "done"}
        same = same_weights(mine[key], theirs[key])
        for record in mine[key].records:
            if record.header.status == "done" and _judge(record) in other:
                rows.append(_judge_row(record, other[_judge(record)], same))
    return _regressions_first(rows, ["data", "model", "threat", "judge"])


def _judge(record: Record) -> Key:
    return record.cell.judge.kind, record.cell.judge.label, record.cell.threat.label


def _judge_row(first: Record, second: Record, same: bool) -> dict[str, Any]:
    a, b = (record.outcomes.set_index("index") for record in (first, second))
    shared = a.index.intersection(b.index)
    a, b = a.loc[shared], b.loc[shared]
    proof, minimal = first.cell.judge.kind == "certificate", first.cell.threat.eps is None
    if proof:
        before, after = a["certified"], b["certified"]
    elif minimal:
        before, after = a["clean"] & a["success"], b["clean"] & b["success"]
    else:
        before, after = a["clean"] & ~a["success"], b["clean"] & ~b["success"]
    change = counted(before, after)
    broken = a["success"] & b["success"] & a["clean"] & b["clean"]
    ratio = (b["distance"] / a["distance"])[broken & (a["distance"] > 0)]
    shown = (
        {"before": np.nan, "after": np.nan} if minimal else {"before": before.mean(), "after": after.mean()}
    )
    fell_is_worse = (proof or not same) if not minimal else same
    return {
        "data": first.cell.data,
        "model": _shared(first.cell.defended, second.cell.defended),
        "threat": named_threat(first.cell.threat),
        "judge": first.cell.judge.label,
        "n": len(shared),
        **shown,
        **_spread(change),
        "verdict": judged(change, fell_is_worse),
        "distance_ratio": float(ratio.median()) if minimal and len(ratio) else np.nan,
        "seconds_before": first.header.wall_seconds,
        "seconds_after": second.header.wall_seconds,
        "passes_before": float((a["forward"] + a["backward"]).mean()) if not proof else np.nan,
        "passes_after": float((b["forward"] + b["backward"]).mean()) if not proof else np.nan,
    }


def named_threat(threat: Threat) -> str:
    """A threat for people, of a fixed eps or of the smallest perturbation."""
    if threat.eps is None:
        return f"{NORMS.get(threat.norm, threat.norm)}, smallest"
    return spoken(threat.norm, threat.eps)


def _regressions_first(rows: list[dict[str, Any]], names: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame["order"] = frame["verdict"].map(ORDER.index)
    return frame.sort_values(["order", "p", *names], ignore_index=True).drop(columns="order")


def changed(first: Side, second: Side) -> pd.DataFrame:
    """One row a sample whose verdict differs, those that got worse first, by model and threat.

    On the same weights it is worse to be open than settled; on others, and else, to be less robust.
    """
    rows = []
    mine, theirs = first.subjects(), second.subjects()
    for key in [key for key in mine if key in theirs]:
        a, b = mine[key], theirs[key]
        same = same_weights(a, b)
        for norm, eps in [threat for threat in a.threats if threat in b.threats]:
            after = {row["index"]: row for row in b.samples(norm, eps).to_dict("records")}
            for row in a.samples(norm, eps).to_dict("records"):
                other = after.get(row["index"])
                if other is None or verdict(row) == verdict(other):
                    continue
                rows.append(
                    {
                        "data": a.data,
                        "model": _shared(a.defended, b.defended),
                        "norm": norm,
                        "eps": eps,
                        "index": row["index"],
                        "label": row["label"],
                        "before": verdict(row),
                        "after": verdict(other),
                        "distance_before": row["distance"],
                        "distance_after": other["distance"],
                        "by_before": row["nearest"] or row["certified_by"],
                        "by_after": other["nearest"] or other["certified_by"],
                        "better": not _fell(verdict(row), verdict(other), same),
                    }
                )
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    return frame.sort_values("better", kind="stable", ignore_index=True).drop(columns="better")


def _fell(before: str, after: str, same: bool) -> bool:
    """Whether a change of verdict is for the worse."""
    if same and "open" in (before, after):
        return after == "open"
    return LADDER.index(after) < LADDER.index(before)


def unmatched(first: Side, second: Side) -> list[tuple[str, str]]:
    """(side, what it alone has): cells of finished judges without a counterpart."""
    found: list[tuple[str, str]] = []
    cells = [_cells(one) for one in (first, second)]
    for place, one in enumerate((first, second)):
        found += [(one.name, " | ".join(map(str, cell))) for cell in sorted(cells[place] - cells[1 - place])]
    return found


def _cells(one: Side) -> set[Key]:
    return {
        (*key, *_judge(record)[1:])
        for key, subject in one.subjects().items()
        for record in subject.records
        if record.header.status == "done"
    }
