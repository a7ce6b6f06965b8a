"""What a report is made of: the records of one or more run folders, checked to belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from bench.record import COLUMNS, Header, Record
from bench.store import KEY, DamagedRecord, RunFile, Store
from models.errors import UserError

NEEDED = (
    *("index", "label", "clean", "success", "distance", "input_norm"),
    *("rmsd", "legal", "forward", "backward", "certified"),
)
"""The columns that a report rests on: a record of another version is read where it has these."""


@dataclass(frozen=True)
class Unreadable:
    """A cell of a run whose record is absent, damaged or of another schema, and why."""

    cell: str
    reason: str


@dataclass(frozen=True)
class Material:
    """Records in the order of their runs, what could not be read, and what the matrices skipped.

    `matrices` maps the identity of a cell to the name of the matrix that asked for it; `lacking` the
    names of absent columns to how many records of an older version lack them; `texts` the names of the
    user's own matrices to their TOML.
    """

    folders: tuple[Path, ...]
    records: tuple[Record, ...]
    unreadable: tuple[Unreadable, ...]
    skips: tuple[tuple[str, str], ...]
    matrices: dict[str, str]
    lacking: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def read(folders: Sequence[Path]) -> Material:
    """The records of the last run under each folder.

    A record that cannot be read becomes a line of the report; one of another version is read where it has
    the columns NEEDED. Raises UserError where a folder holds
    no run, where none of its records can be read, and where two runs hold different cells for the
    same judge, model and threat (other weights, seed, images or data): those are to be compared.
    """
    found: dict[str, Record] = {}
    unreadable: dict[str, Unreadable] = {}
    matrices: dict[str, str] = {}
    skips: dict[tuple[str, str], None] = {}
    texts: dict[str, str] = {}
    lacks: Counter[str] = Counter()
    for folder in folders:
        store = Store(folder)
        run = store.load_run()
        _read_run(store, run, found, unreadable, lacks)
        matrices |= dict.fromkeys(run.cells, run.matrix)
        skips |= dict.fromkeys(run.skips)
        texts |= {run.matrix: run.text} if run.text else {}
    records = tuple(found.values())
    if not records:
        reason = next(iter(unreadable.values())).reason if unreadable else "the last run had no cells"
        raise UserError(f"no record under {', '.join(map(str, folders))} can be read: {reason}")
    _check_alike(records)
    lost = tuple(entry for key, entry in unreadable.items() if key not in found)
    return Material(tuple(folders), records, lost, tuple(skips), matrices, dict(lacks), texts)


def _read_run(
    store: Store,
    run: RunFile,
    found: dict[str, Record],
    unreadable: dict[str, Unreadable],
    lacks: Counter[str],
) -> None:
    """Adds the records of one run, the reasons of those that cannot be read, and the columns they lack."""
    for cell_id in run.cells:
        try:
            record = store.get(cell_id)
        except DamagedRecord:
            record, absent = _of_another_version(store.path(cell_id))
            lacks.update(absent)
            if record is None:
                unreadable[cell_id] = Unreadable(cell_id, _trouble(store.path(cell_id)))
                continue
        if record is None:
            unreadable[cell_id] = Unreadable(cell_id, f"no record in {store.folder}: repeat the run")
        else:
            found[cell_id] = record


def _of_another_version(path: Path) -> tuple[Record | None, list[str]]:
    """A record that has the columns NEEDED in their types and a header we understand, and what it lacks.

    A column that it lacks holds what stands for nothing: False, 0 or NaN. (None, []) for any other file.
    """
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        header = Header.model_validate_json((table.schema.metadata or {})[KEY])
    except (pyarrow.ArrowException, OSError, KeyError, ValueError):
        return None, []
    frame = table.select([name for name in COLUMNS if name in table.column_names]).to_pandas()
    kinds = {name: str(kind) for name, kind in frame.dtypes.items()}
    fits = set(NEEDED) <= set(kinds) and all(COLUMNS[str(name)] == kind for name, kind in kinds.items())
    if not fits:
        return None, []
    absent = [name for name in COLUMNS if name not in kinds]
    nothing = {name: np.nan if COLUMNS[name].startswith("float") else 0 for name in absent}
    return Record(header, frame.assign(**nothing)[list(COLUMNS)].astype(COLUMNS)), absent


def _trouble(path: Path) -> str:
    """Why a record cannot be read: another schema, or a damaged file."""
    again = "delete it and run again"
    try:
        names = set(pyarrow.parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError):
        return f"{path.name} is damaged: {again}"
    lacks, more = sorted(set(COLUMNS) - names), sorted(names - set(COLUMNS))
    if not lacks and not more:
        return f"{path.name} has a header or column types of another version: {again}"
    differ = [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"has also {', '.join(more)}"] * bool(more)
    return f"{path.name} was written by another version ({'; '.join(differ)}): {again}"


def _check_alike(records: Sequence[Record]) -> None:
    """Raises UserError where two records would be two values of one number."""
    seen: dict[tuple[str, ...], Record] = {}
    hashes: dict[str, str] = {}
    weights: dict[tuple[str, str], str] = {}
    for record in records:
        cell, proof = record.cell, record.header.provenance
        key = (cell.data, cell.defended, cell.judge.kind, cell.judge.label, cell.threat.label)
        other = seen.setdefault(key, record)
        if other.cell.id != cell.id:
            raise UserError(
                f"the runs hold two different cells {cell.title} (seeds {other.cell.seed} and {cell.seed}, "
                f"{other.cell.images} and {cell.images} images): report them apart, or use bench compare"
            )
        if proof is not None and hashes.setdefault(cell.data, proof.data_sha256) != proof.data_sha256:
            raise UserError(f"two different data sets '{cell.data}': report them apart, or use bench compare")
        # What follows "<" are the weights of other models that the judge uses.
        named, own = (cell.data, cell.defended), cell.weights.partition("<")[0]
        if weights.setdefault(named, own) != own:
            raise UserError(
                f"the runs hold two different weights of '{cell.defended}': report them apart, "
                "or use bench compare"
            )
