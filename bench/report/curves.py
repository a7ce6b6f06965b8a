"""Accuracy against eps: step functions of the distances and proofs in the records, exact at every eps."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.report.subject import Subject

REACH = 1.25
"""The axis ends at this many times the largest fixed eps."""
POINTS = 100
"""A curve of more steps than this is drawn at as many quantiles of its steps."""

SPENT = 24
"""The same for curves against passes."""


def reach(subject: Subject, norm: str) -> float:
    """Where the axis of a norm ends: beyond the largest fixed eps, or the distances that were found."""
    mine = subject.outcomes[subject.outcomes["norm"] == norm]
    largest = float(mine["eps"].max())
    if not np.isnan(largest):
        return REACH * largest
    found = mine.loc[mine["clean"] & mine["success"], "distance"]
    return float(found.quantile(0.95)) if len(found) else 1.0


def envelope(subject: Subject, norm: str) -> pd.DataFrame:
    """Columns eps, certified, attacked: the bracket at every eps where either end may change.

    attacked(eps) is the share of samples that are classified correctly and that no judge broke at a
    distance <= eps; certified(eps) the share with a proof at a radius >= eps. Both are of all samples
    that some judge of this norm saw, as in the leaderboard.
    """
    mine = subject.outcomes[subject.outcomes["norm"] == norm]
    breaks, proofs = _breaks(mine), _proofs(mine)
    end = reach(subject, norm)
    steps = _thinned(np.unique(np.concatenate([breaks, proofs])), end)
    # A proof at radius r holds up to r itself, so the step lies just behind it.
    return pd.DataFrame(
        {
            "eps": steps,
            "certified": [
                (proofs > step).mean() if step < end else (proofs >= step).mean() for step in steps
            ],
            "attacked": [(breaks > step).mean() for step in steps],
        }
    )


def at(subject: Subject, norm: str, eps: float) -> tuple[float, float]:
    """(certified, attacked) at one eps, from the same step functions."""
    mine = subject.outcomes[subject.outcomes["norm"] == norm]
    return float((_proofs(mine) >= eps).mean()), float((_breaks(mine) > eps).mean())


def _breaks(mine: pd.DataFrame) -> np.ndarray:
    """Per sample the smallest distance at which it errs: 0 where misclassified, infinite where unbroken."""
    wrong = mine["success"] & mine["clean"]
    distance = mine["distance"].where(wrong, np.inf).where(mine["clean"], -1.0)
    return distance.groupby(mine["index"]).min().to_numpy(float)


def _proofs(mine: pd.DataFrame) -> np.ndarray:
    """Per sample the largest radius that some certificate proves, below 0 where there is none."""
    proved = mine["certified"] & (mine["kind"] == "certificate")
    return mine["eps"].where(proved, -1.0).groupby(mine["index"]).max().to_numpy(float)


def _thinned(steps: np.ndarray, end: float) -> np.ndarray:
    inside = steps[(steps > 0) & (steps < end)]
    if len(inside) > POINTS:
        inside = np.unique(np.quantile(inside, np.linspace(0, 1, POINTS), method="nearest"))
    return np.concatenate([[0.0], inside, [end]])


def minimal_curves(subject: Subject, norm: str) -> pd.DataFrame:
    """Columns judge, eps, accuracy: what each attack that seeks the smallest perturbation leaves."""
    outcomes = subject.outcomes
    mine = outcomes[(outcomes["norm"] == norm) & outcomes["eps"].isna() & (outcomes["kind"] == "attack")]
    end, parts = reach(subject, norm), []
    for judge, group in mine.groupby("judge", sort=True):
        breaks = _breaks(group)
        steps = _thinned(np.unique(breaks), end)
        left = [(breaks > step).mean() for step in steps]
        parts.append(pd.DataFrame({"judge": judge, "eps": steps, "accuracy": left}))
    return (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["judge", "eps", "accuracy"])
    )


def fixed_points(subject: Subject, norm: str) -> pd.DataFrame:
    """Columns judge, kind, eps, accuracy, n: what each judge of a fixed eps says alone."""
    parts = []
    for threat_norm, eps in subject.threats:
        if threat_norm == norm:
            alone = subject.judges(norm, eps)
            fixed = subject.outcomes[(subject.outcomes["norm"] == norm) & (subject.outcomes["eps"] == eps)]
            alone = alone[alone["judge"].isin(fixed["judge"].unique())]
            parts.append(alone[["judge", "kind", "accuracy", "n"]].assign(eps=eps))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def by_passes(subject: Subject, norm: str, eps: float) -> pd.DataFrame:
    """Columns judge, passes, accuracy: what each attack of a fixed eps has left after so many passes.

    A sample that is done leaves the working set, so its count says when it was broken. Attacks on
    other models (transfer) and those that spend the same on every sample have one step.
    """
    outcomes = subject.outcomes
    mine = outcomes[(outcomes["norm"] == norm) & (outcomes["eps"] == eps) & (outcomes["kind"] == "attack")]
    mine = mine[~mine["judge"].str.startswith("transfer(")]
    parts = []
    for judge, group in mine.groupby("judge", sort=True):
        cost = (group["forward"] + group["backward"]).to_numpy(float)
        held = group["clean"].mean()
        done = np.where(group["success"] & group["clean"], cost, np.inf)
        steps = np.unique(np.concatenate([[1.0], cost[cost >= 1]]))
        if len(steps) > SPENT:
            steps = np.unique(np.quantile(steps, np.linspace(0, 1, SPENT), method="nearest"))
        left = [held - (done <= step).mean() for step in steps]
        parts.append(pd.DataFrame({"judge": judge, "passes": steps, "accuracy": left}))
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["judge", "passes", "accuracy"])
    )
