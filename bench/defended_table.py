"""Defences scored twice: by attacks that do not know them, and by all that do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bench.catalog import Catalog
from bench.naming import trained_name
from bench.outcomes import broken_at, certified_at, verdicts
from bench.stats import wilson
from bench.tables import Table, threats
from models.norms import described

# What labels of attacks begin with that look at other networks only.
HANDED = ("transfer(", "ensemble-transfer(")


def defended(outcomes: pd.DataFrame, catalog: Catalog) -> list[Table]:
    """Per threat: clean, naive and adaptive accuracy of each defended model.

    naive: on examples made without the defence and handed over. For a defence at the input, on the same
    weights without it, by the white-box attacks of the same run and by transfer's own; for one that trains,
    on the same architecture without any, by transfer's own, where that is a source of the run. adaptive: the
    worst case over all attacks, those examples among them. Both on the samples that the naive ones were asked
    about and that some attack or proof looked at which knows the defence, so that adaptive <= naive <= clean;
    adaptive is NaN where nothing did. undefended: what they were made on under all attacks, where the
    run has it: a defence that is not above it does nothing.
    """
    handed = outcomes[outcomes["judge"].str.startswith("transfer(") & outcomes["eps"].notna()]
    tables = []
    for norm, eps in threats(handed):
        worst = verdicts(outcomes, norm, eps)
        mine = handed[(handed["norm"] == norm) & (handed["eps"] == eps)]
        own = dict(list(outcomes[outcomes["norm"] == norm].groupby("defended")))
        rows = []
        for (model, defense, name), group in mine.groupby(["model", "defense", "defended"], sort=True):
            bare = without_defense(str(model), str(name), catalog)
            naive = group[group["judge"].str.contains(f"source={bare})", regex=False)]
            if bare != name and len(naive):
                row = scored_twice(naive, own[str(name)], norm, eps)
                alone = worst[(worst["defended"] == bare) & worst["index"].isin(row.pop("samples"))]
                without = 1 - alone["attacked"].mean() if len(alone) == row["n"] else np.nan
                rows.append({"model": model, "defense": defense, **row, "undefended": without})
        if rows:
            tables.append(_table(norm, eps, rows))
    return tables


def without_defense(model: str, name: str, catalog: Catalog) -> str:
    """The zoo model of `name` less its defence: what stands at the input, or else what trained it."""
    trained = trained_name(name, catalog)
    return model if trained == name else trained


def scored_twice(naive: pd.DataFrame, own: pd.DataFrame, norm: str, eps: float) -> dict[str, Any]:
    """n, clean, naive and adaptive accuracy with their intervals, the illusion between the two, the samples.

    naive: outcomes of the examples handed over; own: all outcomes of the model that they were handed to.
    """
    seen = naive["index"].isin(looked_at(own, norm, eps))
    known = bool(seen.any())
    naive = naive[seen] if known else naive
    samples = set(naive["index"])
    theirs = own[(own["norm"] == norm) & own["index"].isin(samples)]
    attacked = (broken_at(theirs, eps) | ~theirs["clean"]).groupby(theirs["index"]).any()
    held = {
        "clean": int(naive.groupby("index")["clean"].all().sum()),
        "naive": int((naive["clean"] & ~broken_at(naive, eps)).groupby(naive["index"]).all().sum()),
        "adaptive": int((~attacked).sum()) if known else np.nan,
    }
    n = len(samples)
    row: dict[str, Any] = {"n": n, "samples": samples}
    for column, count in held.items():
        low, high = (np.nan, np.nan) if np.isnan(count) else wilson(int(count), n)
        row |= {column: count / n, f"{column}_low": low, f"{column}_high": high}
    return row | {"illusion": (held["naive"] - held["adaptive"]) / n}


def looked_at(own: pd.DataFrame, norm: str, eps: float) -> set[int]:
    """The samples whose verdict at (norm, eps) somebody sought on the model itself, not on another one.

    That is an attack at this radius, or for the smallest one, that was not handed its examples, or a proof.
    """
    mine = own[own["norm"] == norm]
    attacks = (mine["kind"] == "attack") & ~mine["judge"].str.startswith(HANDED)
    attacks &= mine["eps"].isna() | (mine["eps"] == eps)
    settled = certified_at(mine, eps) | ((mine["kind"] == "certificate") & broken_at(mine, eps))
    return set(mine.loc[attacks | settled, "index"])


def _table(norm: str, eps: float, rows: list[dict[str, object]]) -> Table:
    frame = pd.DataFrame(rows).sort_values(
        ["adaptive", "naive", "model", "defense"], ascending=[False, False, True, True], ignore_index=True
    )
    columns = ("clean", "naive", "adaptive")
    caption = (
        f"Defences at {described(norm, eps)}: accuracy where the attack does not know the defence (made on"
        " the same network without it), and under all attacks on the whole, which rank, both on the n images"
        " that a judge looked at which knows the defence; the illusion is the difference, undefended the"
        " network without it under all attacks (Wilson 95 % intervals)"
    )
    ends = {name: (f"{name}_low", f"{name}_high") for name in columns}
    return Table(f"defended-{norm}-{eps:g}", caption, frame, (*columns, "illusion", "undefended"), ends)
