"""What the files of a batch held when its rows were written: a row answers for that content alone."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import zlib
from functools import lru_cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from models.errors import UserError

Row = tuple[str, str, str]
"""What names a row of a results file: category, onnx, vnnlib."""


class Contents:
    """The hashes of the files behind every row of `results`, in a file beside it: RESULTS.sha256.

    Its lines are category, onnx, vnnlib and hash, the last one of a row counts: VNN-COMP's own file has no
    column for it.
    """

    def __init__(self, results: Path) -> None:
        self.path = results.with_name(f"{results.name}.sha256")
        self._known = self._read()

    def _read(self) -> dict[Row, str]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{self.path} cannot be read: delete it, and the rows that it tells of") from None
        whole = text[: text.rfind("\n") + 1]
        rows = [row for row in csv.reader(whole.splitlines()) if len(row) == 4]
        return {(row[0], row[1], row[2]): row[3] for row in rows}

    def differ(self, row: Row, digest: str) -> bool:
        """Whether the files of `row` held something else than `digest` when it was written.

        Nothing is known of rows without a line here, nor of files that are gone (digest "").
        """
        return bool(digest) and self._known.get(row, digest) != digest

    def add(self, row: Row, digest: str) -> None:
        """Writes down what the files of `row` hold, before it is written itself."""
        if self._known.get(row) == digest:
            return
        self._known[row] = digest
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerow([*row, digest])
            stream.flush()
            os.fsync(stream.fileno())


def digest_of(*files: Path) -> str:
    """The hash of what the files hold, unpacked; "" where one of them cannot be read."""
    try:
        parts = [_hash(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    except (OSError, EOFError, zlib.error):
        return ""
    return hashlib.sha256("".join(parts).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _hash(path: Path, _changed: int, _size: int) -> str:
    content = path.read_bytes()
    found = hashlib.sha256(gzip.decompress(content) if path.suffix == ".gz" else content)
    for outside in _outside(path, content):
        found.update(outside.read_bytes())
    return found.hexdigest()


def _outside(path: Path, content: bytes) -> list[Path]:
    """The files that hold the weights of an ONNX file which keeps them elsewhere."""
    if path.suffix != ".onnx":
        return []
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        return []
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return [path.parent / name for name in sorted({e.value for e in entries if e.key == "location"})]
