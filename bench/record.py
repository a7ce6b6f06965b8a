"""What a run leaves behind: one record a cell, one row an example, typed; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pandas as pd
import pyarrow
from pydantic import BaseModel, ConfigDict

from bench.cell import Cell

COLUMNS: dict[str, str] = {
    "index": "int64",
    "label": "int64",
    "clean": "bool",
    "success": "bool",
    "distance": "float64",
    "input_norm": "float64",
    "rmsd": "float64",
    "margin": "float64",
    "legal": "bool",
    "forward": "int64",
    "backward": "int64",
    "zero_gradient": "bool",
    "certified": "bool",
    "lower": "float64",
}
"""The columns of a record.

index: place in the data set. label: true class. clean: the clean input is classified correctly.
success: the model errs on the attack's point (always so where clean is False). distance: the
perturbation's norm, NaN where the attack failed. input_norm: ||x|| in the same norm, NaN under a
threat that is no ball, whose distance is its own size (degrees, a severity, a share of the picture). rmsd:
sqrt(mean((x' - x)^2)), NaN where the attack failed. margin: z_y - max z_j at the attack's point, NaN
for certificates. legal: the proposal stayed in ball and box. forward, backward: passes used.
zero_gradient: every gradient that the attack asked for was zero throughout, so that it saw nothing.
certified: the certificate holds. lower: its smallest lower bound on the margin, NaN for attacks.
"""

TYPES = [pyarrow.from_numpy_dtype(kind) for kind in COLUMNS.values()]


class Provenance(BaseModel):
    """What made a record: versions, commit, device, data."""

    model_config = ConfigDict(frozen=True)

    version: str
    commit: str
    dirty: bool
    python: str
    torch: str
    platform: str
    device: str
    data_sha256: str
    started: str


class Convergence(BaseModel):
    """How an attack got there: what it had after `looks` looks at each of n correctly classified samples.

    A look is a point whose logits it saw; the last is the point it returned. loss: the mean of the greatest
    max_{j != y} z_j - z_y so far, in logits. success: the share that it broke in the end and of which it had
    seen a misclassified point.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    looks: tuple[int, ...]
    loss: tuple[float, ...]
    success: tuple[float, ...]


class Header(BaseModel):
    """All of a record but its rows; `reason` says why a cell was skipped or failed.

    signs: what made the model suspicious before the attack, by word (models.probes). convergence: None for
    certificates, attacks that see labels alone, and records of before it was kept.
    """

    model_config = ConfigDict(frozen=True)

    cell: Cell
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    wall_seconds: float = 0.0
    confidence: float = 1.0
    shared_forward: int = 0
    shared_backward: int = 0
    provenance: Provenance | None = None
    signs: dict[str, str] = {}
    convergence: Convergence | None = None


@dataclass(frozen=True)
class Record:
    """A header and its outcomes, one row an example with COLUMNS.

    rows: a frame, or the table as it lies on disk: of thousands of records few are looked at one by one, and
    a frame of its own costs as much as reading the file. sha256: of that file, "" where there was none.
    """

    header: Header
    rows: pd.DataFrame | pyarrow.Table
    sha256: str = ""

    @property
    def cell(self) -> Cell:
        return self.header.cell

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        return self.rows if isinstance(self.rows, pd.DataFrame) else self.rows.to_pandas()

    @property
    def table(self) -> pyarrow.Table:
        """The rows in Arrow's types, without metadata."""
        # Whoever was given the frame may have written into it.
        if isinstance(self.rows, pyarrow.Table) and "outcomes" not in vars(self):
            return self.rows
        frame = self.outcomes[list(COLUMNS)].astype(COLUMNS)
        return pyarrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def empty_outcomes() -> pd.DataFrame:
    """No rows, with every column typed."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in COLUMNS.items()})


def panel_name(data_sha256: str) -> str:
    """The artifact in which a run keeps pictures of the images that it judged, once a data set."""
    return f"panel-{data_sha256[:16]}"
