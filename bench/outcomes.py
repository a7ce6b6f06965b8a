"""From records to one frame, and from that frame to a verdict per sample: attacked, certified or open."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow

from bench.cell import Cell
from bench.record import Record
from models.errors import UserError

KEYS = ["data", "model", "defense", "defended", "kind", "judge", "norm", "eps"]
# The hash of the weights that were judged, sources of transferred examples left out: no name, a content.
NETWORK = "network"


def gather(records: Iterable[Record]) -> pd.DataFrame:
    """All outcomes of finished records in one frame; `eps` is NaN for the smallest perturbation."""
    done = [record for record in records if record.header.status == "done"]
    if not done:
        raise UserError("no finished cell to tabulate: see the reasons above, or run the matrix first")
    tables = [record.table for record in done]
    outcomes = pyarrow.concat_tables(tables).to_pandas()
    keys = pd.DataFrame([_keys(record.cell) for record in done], columns=[*KEYS, NETWORK])
    places = np.repeat(np.arange(len(done)), [len(table) for table in tables])
    repeated = keys.loc[places].reset_index(drop=True)
    return pd.concat([outcomes, repeated], axis=1)


def _keys(cell: Cell) -> tuple[object, ...]:
    """The cell's values of KEYS and NETWORK."""
    eps = float("nan") if cell.threat.eps is None else cell.threat.eps
    named = (cell.data, cell.model, cell.defense, cell.defended)
    return (*named, cell.judge.kind, cell.judge.label, cell.threat.norm, eps, cell.weights.partition("<")[0])


def broken_at(outcomes: pd.DataFrame, eps: float) -> pd.Series:
    """Which rows show an adversarial example within `eps`: a closer one found at any radius counts.

    The counterexamples of a complete certificate are such rows too.
    """
    return outcomes["success"] & (outcomes["distance"] <= eps)


def certified_at(outcomes: pd.DataFrame, eps: float) -> pd.Series:
    """Which rows prove robustness within `eps`: a proof at a larger radius holds here too."""
    return (outcomes["kind"] == "certificate") & outcomes["certified"] & (outcomes["eps"] >= eps)


def verdicts(outcomes: pd.DataFrame, norm: str, eps: float) -> pd.DataFrame:
    """One row per (defended, index): clean, attacked (some judge breaks it), certified (some proof holds).

    A sample that is misclassified when clean counts as attacked.
    """
    mine = outcomes[outcomes["norm"] == norm]
    rows = pd.DataFrame(
        {
            "model": mine["model"],
            "defense": mine["defense"],
            "defended": mine["defended"],
            "index": mine["index"],
            "clean": mine["clean"],
            "attacked": broken_at(mine, eps) | ~mine["clean"],
            "certified": certified_at(mine, eps),
        }
    )
    grouped = rows.groupby(["model", "defense", "defended", "index"], sort=True)
    return grouped.agg(
        clean=("clean", "all"), attacked=("attacked", "any"), certified=("certified", "any")
    ).reset_index()


def contradictions(outcomes: pd.DataFrame) -> list[str]:
    """One line for each certified sample that is misclassified or that an attack breaks: one is wrong."""
    found = []
    proofs = outcomes[(outcomes["kind"] == "certificate") & outcomes["certified"]]
    for _, row in proofs[~proofs["clean"]].iterrows():
        found.append(
            f"sample {row['index']} of {row['data']} on {row['defended']}: '{row['judge']}' certifies "
            f"{row['norm']} {row['eps']:g}, but the model misclassifies it unperturbed"
        )
    attacks = outcomes[outcomes["success"] & outcomes["clean"]]
    pairs = proofs.merge(attacks, on=["data", "defended", "norm", "index"], suffixes=("_proof", "_attack"))
    clash = pairs[pairs["distance_attack"] <= pairs["eps_proof"]]
    for _, row in clash.iterrows():
        found.append(
            f"sample {row['index']} of {row['data']} on {row['defended']}: '{row['judge_proof']}' certifies "
            f"{row['norm']} {row['eps_proof']:g}, but '{row['judge_attack']}' breaks it at "
            f"{row['distance_attack']:.6g}"
        )
    return found
