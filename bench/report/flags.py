"""What should make a reader doubt a row: signs read from the records alone."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench.outcomes import broken_at
from bench.paired import Paired, paired
from bench.report.subject import Subject

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Flag:
    """A short word for the table and a sentence for people; `fatal` ones take the row out of the ranking."""

    word: str
    meaning: str
    fatal: bool = False


def flags(subject: Subject, norm: str, eps: float, clashes: list[str]) -> list[Flag]:
    """The flags of one row; `clashes` are the contradictions of this model."""
    found = []
    mine = [line for line in clashes if f" {norm} " in line]
    if mine:
        found.append(Flag("contradiction", mine[0], fatal=True))
    near = subject.within(norm, eps)
    failed = [record for record in near if record.header.status == "failed"]
    done = {record.cell.judge.kind for record in near if record.header.status == "done"}
    why = f": {failed[0].header.reason}" if failed else ""
    if "attack" not in done:
        said = "no attack has finished, so the upper end is only the clean accuracy"
        found.append(Flag("no attack", said + why, fatal=True))
    elif failed:
        names = ", ".join(record.cell.judge.label for record in failed)
        found.append(Flag(f"{len(failed)} failed", f"judges without a result ({names}){why}"))
    if "certificate" not in done:
        found.append(Flag("no certificate", "no certificate applies or was run: the lower end is 0"))
    signs = {word: said for record in near for word, said in record.header.signs.items()}
    found += [Flag(word, f"before any attack: {said}") for word, said in sorted(signs.items())]
    return found + _masking(subject, norm, eps)


def _masking(subject: Subject, norm: str, eps: float) -> list[Flag]:
    """Signs that an attack was misled rather than withstood (Athalye et al. 2018, section 3.1)."""
    found = []
    outcomes = subject.outcomes
    mine = outcomes[(outcomes["norm"] == norm) & (outcomes["kind"] == "attack") & outcomes["clean"]]
    for judge, group in mine[mine["eps"] == eps].groupby("judge", sort=True):
        smaller = mine[(mine["judge"] == judge) & (mine["eps"] < eps)]
        for radius, other in smaller.groupby("eps", sort=True):
            then, now = other.set_index("index")["success"], group.set_index("index")["success"]
            change = _change(then, now)
            if change.lost > change.gained and change.p < SIGNIFICANT:
                said = f"{judge} breaks {change.lost} samples at {radius:g} that it does not break at {eps:g}"
                found.append(said)
                break
    rising = [Flag("rises with ε", f"{'; '.join(found)}: not a good search")] if found else []
    return rising + _blind(mine, eps) + _transfer_wins(mine, eps)


def _blind(mine: pd.DataFrame, eps: float) -> list[Flag]:
    """A flag where attacks were given nothing but zero gradients."""
    near = mine[mine["eps"].isna() | (mine["eps"] == eps)]
    dark = near[near["zero_gradient"]].groupby("judge").size()
    said = ", ".join(f"{judge} on {count} samples" for judge, count in dark.items())
    return [Flag("zero gradient", f"every gradient was zero for {said}: these saw nothing")] if said else []


def _transfer_wins(mine: pd.DataFrame, eps: float) -> list[Flag]:
    """A flag where examples made on another model break more than every attack on this one."""
    broken = broken_at(mine, eps)
    foreign = mine["judge"].str.startswith("transfer(")
    if not foreign.any() or foreign.all():
        return []
    own = broken[~foreign].groupby(mine["index"]).any()
    for judge, group in mine[foreign].groupby("judge", sort=True):
        change = _change(own, broken[group.index].groupby(group["index"]).any())
        if change.gained > change.lost and change.p < SIGNIFICANT:
            said = f"{judge} breaks {change.gained} samples that no attack on the model itself breaks"
            return [Flag("transfer wins", f"{said}: its gradients may be masked")]
    return []


def _change(first: pd.Series, second: pd.Series) -> Paired:
    both = pd.concat([first.rename("a"), second.rename("b")], axis=1, join="inner").astype(bool)
    a, b = both["a"], both["b"]
    return paired(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum()))
