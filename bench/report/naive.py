"""The naive score of a defence beside its adaptive one, read from the records alone."""

from __future__ import annotations

from typing import Any

from bench.cell import Cell
from bench.defended_table import scored_twice
from bench.report.subject import Subject


def knows_nothing(cell: Cell) -> bool:
    """Whether a cell transfers examples from the same network without its defence.

    That is the same weights without what stands at the input or, where nothing does, the network of
    the same architecture that no defence has trained.
    """
    if cell.judge.name != "transfer" or cell.defense == "none":
        return False
    own, _, source = cell.weights.partition("<")
    trained, plus, _ = own.partition("+")
    return source == trained if plus else cell.judge.sources == (cell.model,)


def scores(subject: Subject, norm: str, eps: float) -> dict[str, Any]:
    """naive and adaptive accuracy at a threat, with their intervals; empty where nothing naive was run.

    naive: on examples made without knowing the defence and handed over. adaptive: under all attacks, on the
    same samples, so that adaptive <= naive <= clean; NaN where no attack or proof knew the defence.
    """
    cells = [r.cell for r in subject.within(norm, eps) if r.header.status == "done" and knows_nothing(r.cell)]
    names = {cell.judge.label for cell in cells if cell.threat.eps == eps}
    outcomes = subject.outcomes
    if not names:
        return {}
    mine = outcomes[(outcomes["norm"] == norm) & (outcomes["eps"] == eps) & outcomes["judge"].isin(names)]
    return scored_twice(mine, outcomes, norm, eps)
