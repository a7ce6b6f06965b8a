"""Leaderboards of a data set and threat: the bracket's table with ranks, flags and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.outcomes import contradictions
from bench.report.audits import audit_flags
from bench.report.flags import Flag, flags
from bench.report.naive import scores
from bench.report.ranks import rank_intervals
from bench.report.subject import Subject, in_order, spoken
from bench.tables import bracket, rho_adv


@dataclass(frozen=True)
class Board:
    """One leaderboard: `ranked` in order, `unranked` with the reason in its first fatal flag.

    Both have the columns of bench.tables.bracket and data, defended, best, worst (the rank interval of
    the bracket), attacked_best, attacked_worst (that of the attacked accuracy), strongest_accuracy,
    naive, adaptive with their intervals and scored, their number of samples (bench.report.naive; adaptive
    is attacked where nothing naive was run), rho_adv, seconds, flags.
    """

    data: str
    norm: str
    eps: float
    ranked: pd.DataFrame
    unranked: pd.DataFrame

    @property
    def title(self) -> str:
        return f"{self.data}, {spoken(self.norm, self.eps)}"

    @property
    def name(self) -> str:
        return f"{self.data}-{self.norm}-{self.eps:g}"


def boards(subjects: Sequence[Subject]) -> list[Board]:
    """Every leaderboard, by data set and threat; a model without outcomes is unranked on each of its data."""
    clashes = _clashes(subjects)
    found = []
    for data in dict.fromkeys(subject.data for subject in subjects):
        mine = [subject for subject in subjects if subject.data == data]
        known: dict[tuple[str, float], None] = {}
        for subject in mine:
            known |= dict.fromkeys(subject.threats)
        for norm in in_order(norm for norm, _ in known):
            radii = sorted(eps for other, eps in known if other == norm)
            found += [_board(data, norm, eps, mine, clashes) for eps in radii]
    return found


def _clashes(subjects: Sequence[Subject]) -> dict[int, list[str]]:
    """The contradictions of each model, by its identity; sought one by one only where there are some."""
    measured = [subject.outcomes for subject in subjects if len(subject.outcomes)]
    known = bool(measured) and bool(contradictions(pd.concat(measured, ignore_index=True)))
    return {id(s): contradictions(s.outcomes) if known and len(s.outcomes) else [] for s in subjects}


def _board(
    data: str, norm: str, eps: float, subjects: Sequence[Subject], clashes: dict[int, list[str]]
) -> Board:
    rows = [row for subject in subjects for row in _rows(subject, norm, eps, clashes[id(subject)])]
    frame = pd.DataFrame(rows)
    fatal = frame["flags"].map(lambda found: any(flag.fatal for flag in found))
    ranked = frame[~fatal].sort_values(
        ["certified", "attacked", "model", "defense"], ascending=[False, False, True, True], ignore_index=True
    )
    if len(ranked):
        ranked[["best", "worst"]] = rank_intervals(ranked["certified_low"], ranked["attacked_high"])
        ranked[["attacked_best", "attacked_worst"]] = rank_intervals(
            ranked["attacked_low"], ranked["attacked_high"]
        )
    unranked = frame[fatal].sort_values(["model", "defense"], ignore_index=True)
    return Board(data, norm, eps, ranked, unranked)


def _rows(subject: Subject, norm: str, eps: float, clashes: list[str]) -> list[dict[Any, Any]]:
    """The row of a model, or none where no record of it speaks of the threat."""
    near = subject.within(norm, eps)
    if not near:
        return []
    named = {"data": subject.data, "model": subject.model, "defense": subject.defense}
    more: dict[str, Any] = {
        "defended": subject.defended,
        "seconds": sum(record.header.wall_seconds for record in near),
    }
    if not any(record.header.status == "done" for record in near):
        reasons = [r.header.reason for r in near if r.header.status == "failed"]
        said = f"no judge has a result: {reasons[0] if reasons else near[0].header.reason}"
        return [{**named, **more, "n": 0, "flags": [Flag("no result", said, fatal=True)]}]
    row: dict[Any, Any]
    (row,) = bracket(subject.outcomes, norm, eps).frame.to_dict("records")
    alone = subject.judges(norm, eps)
    strongest = alone[(alone["kind"] == "attack") & (alone["judge"] == row["strongest_attack"])]
    more["strongest_accuracy"] = strongest["accuracy"].iloc[0] if len(strongest) else float("nan")
    more["rho_adv"] = _rho(subject, norm)
    more |= _twice(subject, norm, eps, row)
    more["flags"] = flags(subject, norm, eps, clashes) + audit_flags(subject, norm, eps)
    return [{**named, **row, **more}]


def _twice(subject: Subject, norm: str, eps: float, row: dict[Any, Any]) -> dict[str, Any]:
    """The naive and the adaptive score of a row: without the former, the latter is its attacked accuracy."""
    ends = ("", "_low", "_high")
    found = {f"adaptive{end}": row[f"attacked{end}"] for end in ends} | {"scored": row["n"]}
    found |= {f"naive{end}": float("nan") for end in ends}
    twice = scores(subject, norm, eps)
    found |= {name: value for name, value in twice.items() if name in found}
    return found | {"scored": twice["n"]} if twice else found


def _rho(subject: Subject, norm: str) -> float:
    """DeepFool's rho_adv in a norm, NaN where it was not run."""
    frame = rho_adv(subject.outcomes[subject.outcomes["norm"] == norm]).frame
    if frame.empty:
        return float("nan")
    mine = frame[frame["attack"] == "deepfool"]
    return float(mine["rho_adv"].iloc[0]) if len(mine) else float("nan")
