"""`parquet:PATH`: the Hugging Face image-classification layout, one file or a folder of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.data import DATA_FILES, Dataset
from models.datasets.encoded import EncodedImages
from models.errors import UserError

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
PIECE = 1 << 22


class ParquetImages(EncodedImages):
    """Rows of row groups: `starts` is the first place of each (shard, row group)."""

    def __init__(
        self,
        count: int,
        size: int | None,
        *,
        column: str,
        groups: list[tuple[Path, int]],
        starts: list[int],
    ) -> None:
        super().__init__(count, size)
        self.column, self.groups = column, groups
        self.starts = torch.tensor(starts)
        self._group = lru_cache(maxsize=1)(self._read)

    def _read(self, number: int) -> Any:
        path, group = self.groups[number]
        return pq.ParquetFile(path).read_row_group(group, columns=[self.column]).column(0).combine_chunks()

    def contents(self, places: Sequence[int]) -> list[tuple[bytes, str]]:
        wanted = torch.tensor(places, dtype=torch.int64)
        numbers = torch.searchsorted(self.starts, wanted, right=True) - 1
        found: list[tuple[bytes, str]] = [(b"", "")] * len(places)
        for row in torch.argsort(numbers, stable=True).tolist():
            number = int(numbers[row])
            entry = self._group(number)[places[row] - int(self.starts[number])].as_py()
            content = entry.get("bytes") if isinstance(entry, dict) else entry
            name = (entry.get("path") if isinstance(entry, dict) else None) or self.groups[number][0].name
            found[row] = (content or b"", str(name))
        return found

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for path in dict.fromkeys(path for path, _ in self.groups):
            with path.open("rb") as stream:
                while piece := stream.read(PIECE):
                    digest.update(piece)
        return digest.hexdigest()


def _parquet(path: Path, size: int | None) -> Dataset:
    """Columns `image` {bytes, path} and `label`; labels that are text are numbered in sorted order."""
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not shards or not shards[0].exists():
        raise UserError(f"no parquet file {path}")
    groups, starts, labels, total = [], [], [], 0
    column = ""
    for shard in shards:
        try:
            file = pq.ParquetFile(shard)
            column, label = (_column(shard, file, names) for names in (IMAGE_COLUMNS, LABEL_COLUMNS))
            for group in range(file.metadata.num_row_groups):
                groups.append((shard, group))
                starts.append(total)
                total += file.metadata.row_group(group).num_rows
                labels.append(file.read_row_group(group, columns=[label]).column(0).combine_chunks())
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{shard} cannot be read: {str(error).splitlines()[0]}") from None
    if not total:
        raise UserError(f"{path} has no rows")
    numbers, names = _numbered(path, pa.chunked_array(labels))
    images = ParquetImages(total, size, column=column, groups=groups, starts=starts)
    return Dataset(f"parquet:{path}", images, numbers, len(names) or int(numbers.max()) + 1, classes=names)


def _column(shard: Path, file: pq.ParquetFile, names: Sequence[str]) -> str:
    known = file.schema_arrow.names
    for name in names:
        if name in known:
            return name
    raise UserError(f"{shard} has no column '{names[0]}': it has {', '.join(known)}")


def _numbered(path: Path, labels: pa.ChunkedArray) -> tuple[torch.Tensor, tuple[str, ...]]:
    if labels.null_count:
        raise UserError(f"{path}: {labels.null_count} rows have no label")
    if pa.types.is_integer(labels.type):
        numbers = torch.from_numpy(labels.to_numpy().astype("int64"))
        if int(numbers.min()) < 0:
            raise UserError(f"{path}: labels must be integers from 0, not {int(numbers.min())}")
        return numbers, ()
    if not (pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type)):
        raise UserError(f"{path}: labels must be integers or text, not {labels.type}")
    texts = labels.to_pylist()
    names = tuple(sorted(set(texts)))
    places = {name: number for number, name in enumerate(names)}
    return torch.tensor([places[text] for text in texts]), names


DATA_FILES.add("parquet", _parquet)
