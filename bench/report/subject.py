"""One defended model on one data set: its records, its outcomes, and what follows per threat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from bench.analysis.stored import Analysis
from bench.outcomes import broken_at, certified_at, gather, verdicts
from bench.record import Record
from bench.tables import judges, threats
from models.errors import UserError
from models.norms import NORMS as ORDER
from models.norms import described

NORMS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1", "l0": "ℓ0"}


def spoken(norm: str, eps: float) -> str:
    """A threat for people: ℓ∞, ε = 0.1; the other kinds of threat in the words of `models.norms`."""
    return f"{NORMS[norm]}, ε = {eps:g}" if norm in NORMS else described(norm, eps)


def in_order(norms: Iterable[str]) -> list[str]:
    """The names of threats, each once, in the order of `models.norms`."""
    return sorted(set(norms), key=lambda norm: (ORDER.index(norm) if norm in ORDER else len(ORDER), norm))


@dataclass(frozen=True)
class Subject:
    """A defended model on a data set, with all its records and audits; `outcomes` are of finished ones."""

    data: str
    model: str
    defense: str
    defended: str
    records: tuple[Record, ...]
    audits: tuple[Analysis, ...] = ()
    _verdicts: dict[tuple[str, float], pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)
    _judges: dict[tuple[str, float], pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """The outcomes of finished records, empty where there is none."""
        try:
            return gather(self.records)
        except UserError:
            return pd.DataFrame()

    @cached_property
    def threats(self) -> list[tuple[str, float]]:
        """The fixed threats that some judge of this model has finished."""
        return threats(self.outcomes) if len(self.outcomes) else []

    def within(self, norm: str, eps: float) -> list[Record]:
        """The records that say something of a threat: those at its radius and the minimal ones."""
        near = (None, eps)
        return [r for r in self.records if r.cell.threat.norm == norm and r.cell.threat.eps in near]

    def samples(self, norm: str, eps: float) -> pd.DataFrame:
        """One row a sample: index, label, clean, attacked, certified, and what came nearest to breaking it.

        `distance` is the smallest at which any judge broke it within eps, NaN where none did, and
        `nearest` that judge; `breakers` counts the judges that broke it; `certified_by` lists its proofs.
        """
        if (norm, eps) not in self._verdicts:
            self._verdicts[norm, eps] = self._samples(norm, eps)
        return self._verdicts[norm, eps]

    def _samples(self, norm: str, eps: float) -> pd.DataFrame:
        mine = self.outcomes[self.outcomes["norm"] == norm]
        found = verdicts(self.outcomes, norm, eps).drop(columns=["model", "defense", "defended"])
        labels = mine.drop_duplicates("index").set_index("index")["label"]
        broken = mine[broken_at(mine, eps) & mine["clean"]]
        proved = mine[certified_at(mine, eps)]
        frame = found.set_index("index")
        frame.insert(0, "label", labels)
        closest = broken.sort_values(["distance", "judge"]).drop_duplicates("index").set_index("index")
        frame["distance"] = closest["distance"]
        frame["nearest"] = closest["judge"].reindex(frame.index).fillna("")
        frame["breakers"] = broken.groupby("index").size().reindex(frame.index).fillna(0).astype("int64")
        proofs = proved.groupby("index")["judge"].agg(lambda names: ", ".join(sorted(set(names))))
        frame["certified_by"] = proofs.reindex(frame.index).fillna("")
        return frame.reset_index()

    def judges(self, norm: str, eps: float) -> pd.DataFrame:
        """Each judge alone under a threat, as bench.tables.judges."""
        if (norm, eps) not in self._judges:
            self._judges[norm, eps] = judges(self.outcomes, norm, eps).frame
        return self._judges[norm, eps]


def subjects(records: Sequence[Record]) -> list[Subject]:
    """The defended models of `records`, by data set and name, the undefended one first."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.cell.data, record.cell.model, record.cell.defense), []).append(record)
    ordered = sorted(groups, key=lambda key: (key[0], key[1], key[2] != "none", key[2]))
    return [
        Subject(data, model, defense, groups[data, model, defense][0].cell.defended, tuple(mine))
        for data, model, defense in ordered
        for mine in [groups[data, model, defense]]
    ]
