"""Leaderboards: pure functions of the outcomes, the same bytes for the same records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from bench.outcomes import KEYS, broken_at, certified_at, verdicts
from bench.record import Header
from bench.stats import wilson
from models.norms import NORMS, described


@dataclass(frozen=True)
class Table:
    """A named frame with its caption.

    Columns of fractions are named in `percent`; `intervals` maps a column to those of its two ends.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    percent: tuple[str, ...] = ()
    intervals: dict[str, tuple[str, str]] = field(default_factory=dict)


def threats(outcomes: pd.DataFrame) -> list[tuple[str, float]]:
    """The (norm, eps) pairs that some fixed-radius judge was run at, in order."""
    fixed = outcomes[outcomes["eps"].notna()][["norm", "eps"]].drop_duplicates()
    pairs = zip(fixed["norm"].tolist(), fixed["eps"].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (NORMS.index(pair[0]), pair[1]))


def all_tables(outcomes: pd.DataFrame) -> list[Table]:
    """Every leaderboard of a run."""
    tables = []
    for norm, eps in threats(outcomes):
        tables += [bracket(outcomes, norm, eps), judges(outcomes, norm, eps)]
    tables += [rho_adv(outcomes), *transfers(outcomes), *corruptions(outcomes)]
    return [table for table in tables if len(table.frame)]


def bracket(outcomes: pd.DataFrame, norm: str, eps: float) -> Table:
    """The headline: robust accuracy lies between `certified` and `attacked`, the rest is the gap."""
    rows = []
    best = verdicts(outcomes, norm, eps)
    mine = outcomes[outcomes["norm"] == norm]
    strongest, tightest = _strongest(mine, eps), _tightest(mine, eps)
    for (model, defense, defended), group in best.groupby(["model", "defense", "defended"], sort=True):
        n, survivors, proved = len(group), int((~group["attacked"]).sum()), int(group["certified"].sum())
        attacked, certified = wilson(survivors, n), wilson(proved, n)
        rows.append(
            {
                "model": model,
                "defense": defense,
                "n": n,
                "clean": group["clean"].mean(),
                "certified": proved / n,
                "attacked": survivors / n,
                "gap": (survivors - proved) / n,
                "certified_low": certified[0],
                "certified_high": certified[1],
                "attacked_low": attacked[0],
                "attacked_high": attacked[1],
                "strongest_attack": strongest.get(defended, "-"),
                "best_certificate": tightest.get(defended, "-"),
            }
        )
    frame = pd.DataFrame(rows)
    if len(frame):
        frame = frame.sort_values(
            ["certified", "attacked", "model", "defense"],
            ascending=[False, False, True, True],
            ignore_index=True,
        )
    ends = {name: (f"{name}_low", f"{name}_high") for name in ("certified", "attacked")}
    caption = (
        f"Robust accuracy at {described(norm, eps)} lies in [certified, attacked]: proofs from below, the"
        " worst case over all attacks and counterexamples from above (Wilson 95 % intervals in brackets)"
    )
    return Table(f"{norm}-{eps:g}", caption, frame, ("clean", "certified", "attacked", "gap"), ends)


def not_run(headers: Iterable[Header]) -> Table:
    """Every cell that was skipped or failed, with its reason."""
    rows = [
        {
            "model": header.cell.model,
            "defense": header.cell.defense,
            "judge": header.cell.judge.label,
            "threat": header.cell.threat.label,
            "status": header.status,
            "reason": header.reason,
        }
        for header in headers
        if header.status != "done"
    ]
    return Table(
        "not-run",
        "Cells without a result: skipped where a judge does not apply, or failed",
        pd.DataFrame(rows),
    )


def _strongest(mine: pd.DataFrame, eps: float) -> dict[object, str]:
    """By model, the attack that breaks the greatest share of its correctly classified samples."""
    mine = mine[(mine["kind"] == "attack") & mine["clean"]]
    return _best(broken_at(mine, eps).groupby([mine["defended"], mine["judge"]]).mean())


def _tightest(mine: pd.DataFrame, eps: float) -> dict[object, str]:
    """By model, the certificate that proves the greatest share of its samples, where one proves any."""
    mine = mine[mine["kind"] == "certificate"]
    rate = certified_at(mine, eps).groupby([mine["defended"], mine["judge"]]).mean()
    return _best(rate[rate > 0])


def _best(rate: pd.Series) -> dict[object, str]:
    """By model, the judge of the greatest rate, the first of equals by name."""
    return dict(rate.sort_index().groupby(level="defended").idxmax().tolist())


def judges(outcomes: pd.DataFrame, norm: str, eps: float) -> Table:
    """Each attack and certificate alone: robust (or certified) accuracy on its own n images."""
    mine = outcomes[(outcomes["norm"] == norm) & (outcomes["eps"].isna() | (outcomes["eps"] == eps))]
    attack, broken = mine["kind"] == "attack", broken_at(mine, eps)
    found = broken & mine["clean"] & attack
    counted = mine[KEYS].assign(
        attack=attack,
        clean=mine["clean"],
        held=(mine["clean"] & ~broken).where(attack, certified_at(mine, eps)),
        found=found,
        rmsd=mine["rmsd"].where(found),
        passes=(mine["forward"] + mine["backward"]).where(attack),
        illegal=~mine["legal"],
        zero_gradient=mine["zero_gradient"],
    )
    sums = dict.fromkeys(("clean", "held", "found", "illegal", "zero_gradient"), "sum")
    grouped = counted.groupby(KEYS, dropna=False, sort=True)
    total = grouped.agg({**sums, "attack": "size", "rmsd": "mean", "passes": "mean"}).reset_index()
    n, held = total["attack"], total["held"].astype(int)
    ends = [wilson(*pair) for pair in zip(held.tolist(), n.tolist(), strict=True)]
    frame = total[["model", "defense", "kind", "judge"]].assign(
        n=n,
        accuracy=held / n,
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
        fooling_rate=(total["found"] / total["clean"].clip(lower=1)).where(total["kind"] == "attack"),
        rmsd=total["rmsd"],
        passes=total["passes"],
        illegal=total["illegal"].astype(int),
        zero_gradient=total["zero_gradient"].astype(int),
    )
    caption = (
        f"Each judge alone at {described(norm, eps)}: robust accuracy under an attack (upper bound), "
        "certified accuracy of a certificate (lower bound), each on its own n images"
    )
    return Table(
        f"{norm}-{eps:g}-judges", caption, frame, ("accuracy", "fooling_rate"), {"accuracy": ("low", "high")}
    )


def rho_adv(outcomes: pd.DataFrame) -> Table:
    """DeepFool's robustness: the mean of ||r|| / ||x|| over correctly classified samples that were fooled."""
    rows = []
    who = ["norm", "model", "defense", "judge"]
    minimal = (outcomes["kind"] == "attack") & outcomes["eps"].isna()
    read = outcomes.loc[minimal, [*who, "clean", "success", "distance", "input_norm"]]
    for key, group in read.groupby(who, sort=True):
        fooled = group[group["clean"] & group["success"]]
        ratio = fooled["distance"] / fooled["input_norm"]
        rows.append(
            {
                **dict(zip(("norm", "model", "defense", "attack"), key, strict=True)),
                "n": len(group),
                "rho_adv": ratio.mean(),
                "standard_error": ratio.std(ddof=1) / np.sqrt(len(ratio)) if len(ratio) > 1 else np.nan,
                "median_distance": fooled["distance"].median(),
                "clean_errors": int((~group["clean"]).sum()),
                "failures": int((group["clean"] & ~group["success"]).sum()),
            }
        )
    caption = (
        "rho_adv = mean ||r|| / ||x|| (Moosavi-Dezfooli et al. 2016, eq. 15): clean errors are left out,"
        " failures of the attack are left out and counted"
    )
    return Table("rho-adv", caption, pd.DataFrame(rows))


def transfers(outcomes: pd.DataFrame) -> list[Table]:
    """Per threat: the accuracy of each model (column) on the examples made on each source (row).

    Examples of transfer's own attack, where these were made: others may have been made for some models only
    (plan).
    """
    tables = []
    mine = outcomes[outcomes["judge"].str.startswith("transfer(") & outcomes["eps"].notna()]
    for norm, eps in threats(mine):
        cell = mine[(mine["norm"] == norm) & (mine["eps"] == eps)]
        own = ~cell["judge"].str.contains("attack=", regex=False)
        cell = cell[own] if own.any() else cell
        cell = cell.assign(
            source=cell["judge"].str.extract(r"source=(.+)\)$", expand=False),
            robust=~cell["success"],
        )
        matrix = cell.pivot_table(index="source", columns="defended", values="robust", aggfunc="mean")
        sizes = cell[cell["clean"]].groupby("source")["rmsd"].mean()
        frame = matrix.reset_index()
        frame.insert(1, "rmsd", frame["source"].map(sizes))
        caption = (
            f"Transfer at {norm} eps = {eps:g}: accuracy of each model (columns) on adversarial examples made"
            " on each source (rows); rmsd is that of the examples that fooled another model"
        )
        tables.append(Table(f"transfer-{norm}-{eps:g}", caption, frame, tuple(matrix.columns)))
    return tables


def corruptions(outcomes: pd.DataFrame) -> list[Table]:
    """Accuracy a family and severity, and the mean corruption error of each model."""
    mine = outcomes[outcomes["judge"].str.startswith("corruptions(family=")]
    if mine.empty:
        return []
    name = mine["judge"].str.extract(r"family=([^,)]+)", expand=False)
    mine = mine.assign(family=name, error=mine["success"].astype(float))
    who = ["model", "defense", "family"]
    errors = mine.pivot_table(index=who, columns="eps", values="error", aggfunc="mean").sort_index(axis=1)
    severities = [f"severity_{eps:g}" for eps in errors.columns]
    families = (1 - errors).set_axis(severities, axis=1).reset_index()
    means = {key: float(group.to_numpy().mean()) for key, group in errors.groupby(level=["model", "defense"])}
    rows = []
    for (model, defense), group in errors.groupby(level=["model", "defense"], sort=True):
        mean, reference = means[model, defense], means.get((model, "none"), np.nan)
        rows.append(
            {
                "model": model,
                "defense": defense,
                "families": len(group),
                **dict(zip(severities, 1 - group.mean(), strict=True)),
                "mean_error": mean,
                "relative_error": mean / reference if reference else np.nan,
            }
        )
    caption = (
        "Mean corruption error (Hendrycks, Dietterich 2019): the error's mean over families and severities,"
        " and that relative to the same network undefended; clean errors count as errors"
    )
    shares = (*severities, "mean_error", "relative_error")
    return [
        Table("corruption-error", caption, pd.DataFrame(rows), shares),
        Table(
            "corruption-families",
            "Accuracy under each common corruption, by severity; clean errors count as errors",
            families,
            tuple(severities),
        ),
    ]
