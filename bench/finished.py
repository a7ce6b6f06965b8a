"""What a finished run printed and wrote, kept under the digests of all that it was made of.

A second run of the same cells then reads the bytes of their records and tabulates nothing. Nothing here is
believed: a record, a leaderboard, a line of the suite or a library that is another one makes it worthless.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import version

from pydantic import BaseModel, ValidationError

from bench.catalog import fingerprint
from bench.render import Sheet, ours
from bench.store import Store
from models.atomic import write_atomically

FILE = ".finished.json"
# Those that have a say in what stands in a leaderboard.
LIBRARIES = ("numpy", "pandas", "pyarrow", "tabulate")


class Finished(BaseModel):
    """The leaderboards of a run whose cells all have a result.

    made_of: `ingredients`. skipped: the reasons by cell. sheets, clashes: the tables and contradictions that
    are printed. files: the leaderboards' digests by name.
    """

    made_of: str
    skipped: dict[str, str]
    sheets: list[Sheet]
    clashes: list[str]
    files: dict[str, str]


def suite() -> list[str]:
    """What makes leaderboards of records, as it is installed now."""
    return [fingerprint(), sys.version, *map(version, LIBRARIES)]


# Taken when the code is loaded: what is installed during a run of hours did not make its tables.
LOADED = suite()


def ingredients(records: Iterable[tuple[str, str]]) -> str:
    """The digest of all that leaderboards depend on; `records`: cell and content, in order."""
    return sha256(json.dumps([LOADED, list(records)]).encode()).hexdigest()


def keep(finished: Finished, store: Store) -> None:
    """Keeps `finished` for `recall`, where there is room."""
    body = finished.model_dump_json().encode()
    # The leaderboards are written: without this the next run takes longer, and that is all.
    with suppress(OSError):
        write_atomically(store.folder / FILE, sha256(body).hexdigest().encode() + b"\n" + body)


def recall(store: Store, cell_ids: list[str]) -> Finished | None:
    """What was kept, where tabulating the cells would print it and write the leaderboards that are there."""
    try:
        digest, _, body = (store.folder / FILE).read_bytes().partition(b"\n")
        if sha256(body).hexdigest().encode() != digest:
            return None
        kept = Finished.model_validate_json(body)
        records = [(cell_id, sha256(store.path(cell_id).read_bytes()).hexdigest()) for cell_id in cell_ids]
        there = ours(store.leaderboards)
        files = {path.name: sha256(path.read_bytes()).hexdigest() for path in there}
    except (OSError, ValidationError):
        return None
    return kept if (kept.made_of, kept.files) == (ingredients(records), files) else None
