"""Records on disk: a folder of Parquet files, one a cell, each written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import pyarrow
import pyarrow.parquet
from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic import BaseModel, ValidationError

from bench.record import COLUMNS, TYPES, Header, Record
from models.atomic import write_atomically
from models.errors import UserError

KEY = b"rhobust"


class RunFile(BaseModel):
    """What the last run was asked for: the matrix' name, its cells in order, and what it skipped.

    text: the TOML of a matrix of the user's own, "" for those of the suite and in runs of before it was kept.
    """

    matrix: str
    cells: list[str]
    skips: list[tuple[str, str]]
    text: str = ""


class DamagedRecord(UserError):
    """A record file that cannot be read."""


class Store:
    """The folder of a run, results/: `records/ID.parquet`, `artifacts/`, `leaderboards/`, `run.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = folder / "records"
        self.leaderboards = folder / "leaderboards"
        self._read: dict[str, tuple[tuple[int, int], Record]] = {}

    def path(self, cell_id: str) -> Path:
        return self.records / f"{cell_id}.parquet"

    def claimed(self) -> AcquireReturnProxy:
        """The folder's lock, held until it is left or the process is gone: two would run every cell twice.

        Raises UserError where another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(self.folder / ".lock").acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.folder}: another process is running into it: wait for it, or give another --out"
            ) from None

    def put(self, record: Record) -> None:
        """Stores a record under its cell's identity, replacing an older one."""
        table = record.table.replace_schema_metadata({KEY: record.header.model_dump_json().encode()})
        content = io.BytesIO()
        pyarrow.parquet.write_table(table, content, write_page_checksum=True)
        write_atomically(self.path(record.cell.id), content.getvalue())

    def get(self, cell_id: str) -> Record | None:
        """The record of a cell, or None; raises DamagedRecord where its file cannot be read."""
        path = self.path(cell_id)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        stamp = (stat.st_mtime_ns, stat.st_size)
        if cell_id not in self._read or self._read[cell_id][0] != stamp:
            self._read[cell_id] = (stamp, self._load(path))
        return self._read[cell_id][1]

    def _load(self, path: Path) -> Record:
        damaged = DamagedRecord(f"record {path} is damaged: delete it and run again")
        try:
            # Asked for in one piece: a run has thousands of records, and each is small.
            content = path.read_bytes()
            reader = pyarrow.BufferReader(content)
            with pyarrow.parquet.ParquetFile(reader, page_checksum_verification=True) as file:
                table = file.read(use_threads=False)
            header = Header.model_validate_json((table.schema.metadata or {})[KEY])
            rows = table.select(list(COLUMNS)).replace_schema_metadata(None)
        except (pyarrow.ArrowException, OSError, KeyError, ValidationError, ValueError):
            raise damaged from None
        # Only a number of 64 bits has a value for what is not there.
        holes = (column.null_count and not pyarrow.types.is_float64(column.type) for column in rows.columns)
        if table.num_columns != len(COLUMNS) or rows.schema.types != TYPES or any(holes):
            raise damaged
        return Record(header, rows, sha256(content).hexdigest())

    def header(self, cell_id: str) -> Header | None:
        """The header alone, or None where the record is absent or damaged."""
        try:
            record = self.get(cell_id)
        except DamagedRecord:
            return None
        return None if record is None else record.header

    def many(self, cell_ids: Iterable[str]) -> list[Record]:
        """The records that exist, in the order asked for."""
        found = (self.get(cell_id) for cell_id in cell_ids)
        return [record for record in found if record is not None]

    def save_run(self, run: RunFile) -> None:
        """Remembers what was asked for, for `table`."""
        write_atomically(self.folder / "run.json", (run.model_dump_json(indent=1) + "\n").encode())

    def load_run(self) -> RunFile:
        """The last run; raises UserError where there is none or it cannot be read."""
        path = self.folder / "run.json"
        try:
            return RunFile.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"no run under {self.folder}: python -m bench run --out {self.folder}") from None
        except ValidationError:
            raise UserError(f"{path} is damaged: repeat the run, finished cells are kept") from None
