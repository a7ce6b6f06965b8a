"""Cells, records and outcome frames for tests of the harness, made by hand and without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bench.catalog import Catalog, Entry
from bench.cell import Cell, Component, Threat
from bench.outcomes import gather
from bench.record import COLUMNS, Header, Provenance, Record
from models.cost import Cost

PROVENANCE = Provenance(
    version="0.1.0",
    commit="0" * 40,
    dirty=False,
    python="3.12",
    torch="2.13.0",
    platform="test",
    device="cpu",
    data_sha256="d" * 64,
    started="2024-01-01T00:00:00+00:00",
)


def cell(
    judge: str = "fgsm",
    *,
    model: str = "lenet",
    defense: str = "none",
    norm: str = "linf",
    eps: float | None = 0.1,
    kind: str = "attack",
    chosen: dict[str, Any] | None = None,
    images: int = 4,
    seed: int = 0,
    weights: str = "0123456789abcdef",
) -> Cell:
    """A cell of judge `judge` on `model` under (norm, eps)."""
    return Cell(
        data="mnist5k",
        images=images,
        model=model,
        defense=defense,
        weights=weights,
        judge=Component(kind=kind, name=judge, chosen=chosen or {}),
        threat=Threat(norm=norm, eps=eps),
        seed=seed,
    )


def attacked(of: Cell, distances: list[float | None], *, clean: list[bool] | None = None) -> Record:
    """An attack's record: the distance at which each sample was broken, None where it was not.

    Samples that are not clean are recorded as the base class does: success at distance 0.
    """
    right = np.array([True] * len(distances) if clean is None else clean)
    reached = np.array([np.nan if distance is None else distance for distance in distances])
    reached = np.where(right, reached, 0.0)
    return record(
        of,
        clean=right,
        success=~np.isnan(reached),
        distance=reached,
        rmsd=reached / 2,
        margin=np.where(np.isnan(reached), 1.0, -1.0),
        forward=3,
        backward=2,
    )


def proved(of: Cell, certified: list[bool], *, clean: list[bool] | None = None) -> Record:
    """A certificate's record: which samples it proves."""
    right = [True] * len(certified) if clean is None else clean
    return record(of, clean=right, certified=certified, lower=np.where(certified, 0.5, -0.5))


def record(of: Cell, **columns: Any) -> Record:
    """A finished record of `of`; columns that are not given hold what does not apply."""
    n = len(columns["clean"])
    absent: dict[str, Any] = {"index": range(n), "label": [i % 10 for i in range(n)], "input_norm": 2.0}
    absent |= {"success": False, "legal": True, "certified": False, "forward": 0, "backward": 0}
    absent["zero_gradient"] = False
    absent |= dict.fromkeys(("distance", "rmsd", "margin", "lower"), np.nan)
    frame = pd.DataFrame({**absent, **columns}, index=range(n))[list(COLUMNS)].astype(COLUMNS)
    return Record(Header(cell=of, status="done", wall_seconds=1.5, provenance=PROVENANCE), frame)


def outcomes(*records: Record) -> pd.DataFrame:
    """The outcomes frame of `records`."""
    return gather(records)


def catalog() -> Catalog:
    """A small catalog: two models, one of which `hull` refuses; a minimal, a plain and a transfer attack."""

    def entry(name: str, **more: Any) -> Entry:
        return Entry(name=name, summary=name, paper="-", **more)

    norms = ("linf", "l2")
    attacks = [
        entry("step", norms=norms, defaults={"steps": 10, "relative_step": 0.25}),
        entry("nearest", norms=norms, minimal=True, cost=Cost.MEDIUM),
        entry("transfer", norms=("linf",), models=("source",), defaults={"inner": "step"}),
        entry("sparse", norms=("l1",)),
    ]
    certificates = [
        entry("boxes", norms=norms, defaults={"rounds": 1}),
        entry("program", norms=("linf",), cost=Cost.EXTREME),
    ]
    defenses = [entry("none"), entry("hull", refuses={"pooled": "max pooling has no dual"})]
    return Catalog(
        models={name: entry(name) for name in ("dense", "pooled")},
        defenses={one.name: one for one in defenses},
        attacks={one.name: one for one in attacks},
        certificates={one.name: one for one in certificates},
        data={"mnist5k": entry("mnist5k")},
    )
