"""Records on disk: whole, typed, and never half."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from bench.execute import execute, pending
from bench.outcomes import gather
from bench.plan import Plan
from bench.record import COLUMNS, Header, Record, empty_outcomes
from bench.store import DamagedRecord, RunFile, Store
from models.errors import UserError
from tests.bench.builders import attacked, cell, proved, record
from tests.bench.commands import ROOT

CELLS = (cell("fgsm"), cell("pgd"), cell("ibp", kind="certificate"))


def filled(folder: Path) -> Store:
    """A store with a finished record of each of CELLS."""
    store = Store(folder)
    for one in CELLS[:2]:
        store.put(attacked(one, [0.05, None, 0.1, 1 / 3], clean=[True, True, False, True]))
    store.put(proved(CELLS[2], [True, False, False, True]))
    return store


HOLDER = """import sys, time
from pathlib import Path
from bench.store import Store
with Store(Path(sys.argv[1])).claimed():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_runs_at_a_time_until_its_process_is_gone(tmp_path: Path) -> None:
    """A lock that a killed process left behind would keep everybody out for ever."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is running into it") as refusal:
            Store(tmp_path).claimed()
        assert str(tmp_path) in str(refusal.value)
        assert "\n" not in str(refusal.value)
        Store(tmp_path / "other").claimed().lock.release()
        holder.kill()
        holder.wait(timeout=60)
        with Store(tmp_path).claimed():
            pass
        with Store(tmp_path).claimed():
            pass
    finally:
        holder.kill()
        holder.wait(timeout=60)


def test_a_record_comes_back_equal_in_every_column_and_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = {name: rng.random(4) for name, kind in COLUMNS.items() if kind == "float64"}
    numbers["distance"] = [np.nan, np.inf, 1e-320, np.nextafter(0.1, 1)]
    flags = {name: rng.random(4) < 0.5 for name, kind in COLUMNS.items() if kind == "bool"}
    wide = [2**62, -1, 0, 59_999]
    integers = {name: wide for name, kind in COLUMNS.items() if kind == "int64"}
    made = record(CELLS[0], **numbers, **flags, **integers)
    store = Store(tmp_path)
    store.put(made)
    back = store.get(CELLS[0].id)
    assert back is not None
    assert back.header == made.header
    assert back.cell.id == CELLS[0].id
    pd.testing.assert_frame_equal(back.outcomes, made.outcomes, check_exact=True)
    assert {name: str(kind) for name, kind in back.outcomes.dtypes.items()} == COLUMNS
    for name in COLUMNS:
        assert back.outcomes[name].to_numpy().tobytes() == made.outcomes[name].to_numpy().tobytes()


@pytest.mark.parametrize("status", ["skipped", "failed"])
def test_a_record_without_rows_keeps_its_reason_and_types(status: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(
        Record(Header(cell=CELLS[0], status=status, reason="it has 'no' rule\nfor this"), empty_outcomes())
    )
    back = store.get(CELLS[0].id)
    assert back is not None
    assert (back.header.status, back.header.reason) == (status, "it has 'no' rule\nfor this")
    assert {name: str(kind) for name, kind in back.outcomes.dtypes.items()} == COLUMNS


def test_a_missing_record_is_none(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.get("c1-absent") is None
    assert store.header("c1-absent") is None
    assert [one.cell for one in store.many([CELLS[2].id, "c1-absent", CELLS[0].id])] == [CELLS[2], CELLS[0]]


def test_the_same_record_is_the_same_file(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "a"), filled(tmp_path / "b")
    for some in CELLS:
        assert one.path(some.id).read_bytes() == two.path(some.id).read_bytes()


def flipped(content: bytes) -> bytes:
    """One bit of the first column's data changed; the footer is whole."""
    middle = 40
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated by one byte": lambda content: content[:-1],
    "truncated in the middle": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 8,
    "text": lambda content: b"not a record",
    "zeros of the right length": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_named_and_its_cell_alone_is_pending_again(case: str, tmp_path: Path) -> None:
    store, plan = filled(tmp_path), Plan(CELLS, ())
    assert pending(plan, store) == []
    path = store.path(CELLS[1].id)
    path.write_bytes(DAMAGE[case](path.read_bytes()))
    with pytest.raises(DamagedRecord, match="damaged: delete it") as refusal:
        store.get(CELLS[1].id)
    assert str(path) in str(refusal.value)
    assert isinstance(refusal.value, UserError)
    assert store.header(CELLS[1].id) is None
    assert pending(plan, store) == [CELLS[1]]


def test_a_parquet_file_of_something_else_is_damaged(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = store.path(CELLS[0].id)
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(DamagedRecord):
        store.get(CELLS[0].id)
    assert pending(Plan(CELLS, ()), store) == [CELLS[0]]


def test_a_record_that_lacks_a_column_is_damaged(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = store.path(CELLS[0].id)
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.drop_columns(["margin"]), path)
    with pytest.raises(DamagedRecord):
        store.get(CELLS[0].id)


def test_what_is_written_into_the_frame_of_a_stored_record_is_what_is_stored(tmp_path: Path) -> None:
    """Its rows stay as they lay on disk beside the frame."""
    store = filled(tmp_path)
    read = store.get(CELLS[0].id)
    assert read is not None
    assert read.table is read.rows
    read.outcomes.loc[1, "distance"] = 0.25
    store.put(read)
    assert gather([read])["distance"].tolist()[1] == 0.25
    again = Store(tmp_path).get(CELLS[0].id)
    assert again is not None
    assert again.outcomes["distance"].tolist()[1] == 0.25


@pytest.mark.parametrize("name", ["index", "certified"])
def test_a_record_with_a_hole_in_what_cannot_be_unknown_is_damaged(name: str, tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = store.path(CELLS[0].id)
    table = pyarrow.parquet.read_table(path)
    place = table.column_names.index(name)
    holed = [*table.column(name).to_pylist()[:-1], None]
    kind = table.schema.field(name)
    pyarrow.parquet.write_table(table.set_column(place, kind, pyarrow.array(holed, kind.type)), path)
    with pytest.raises(DamagedRecord):
        store.get(CELLS[0].id)


def test_a_flipped_bit_in_the_data_is_never_read_as_a_result(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = store.path(CELLS[0].id)
    content = path.read_bytes()
    path.write_bytes(flipped(content))
    with pytest.raises(DamagedRecord):
        store.get(CELLS[0].id)
    assert pending(Plan(CELLS, ()), store) == [CELLS[0]]


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


def test_a_kill_between_write_and_rename_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plan = Store(tmp_path), Plan(CELLS, ())

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            store.put(attacked(CELLS[0], [0.05, None]))
    assert list(store.records.iterdir()) != []
    assert store.get(CELLS[0].id) is None
    assert store.many(one.id for one in CELLS) == []
    assert pending(plan, store) == list(CELLS)
    store.put(attacked(CELLS[0], [0.05, None]))
    assert pending(plan, store) == list(CELLS[1:])


def test_a_kill_between_write_and_rename_keeps_the_older_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    before = store.path(CELLS[0].id).read_bytes()

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            store.put(attacked(CELLS[0], [None, None]))
    assert store.path(CELLS[0].id).read_bytes() == before


def test_a_record_for_which_there_is_no_room_leaves_nothing_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    before = {path: path.read_bytes() for path in store.records.iterdir()}

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as stream:
            stream.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left") as refusal:
            store.put(attacked(CELLS[0], [None, None]))
    assert refusal.value.filename == str(store.path(CELLS[0].id))
    assert {path: path.read_bytes() for path in store.records.iterdir()} == before


class InOrder:
    """An executor without processes, that stops after some items as a kill would."""

    def __init__(self, stop_after: int) -> None:
        self.stop_after = stop_after

    def map(self, function, items):
        for number, item in enumerate(items):
            if number == self.stop_after:
                raise Killed
            yield item, function(item)


def test_each_record_is_stored_as_it_comes(tmp_path: Path) -> None:
    store, plan, ran = Store(tmp_path), Plan(CELLS, ()), []

    def run(one):
        ran.append(one)
        return attacked(one, [0.05, None])

    with pytest.raises(Killed):
        list(execute(pending(plan, store), run, store, InOrder(2)))
    assert pending(plan, store) == [CELLS[2]]
    assert [one.cell for one in execute(pending(plan, store), run, store, InOrder(9))] == [CELLS[2]]
    assert ran == list(CELLS)
    assert pending(plan, store) == []


def test_failed_cells_run_again_and_skipped_ones_do_not(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.put(Record(Header(cell=CELLS[0], status="failed", reason="out of memory"), empty_outcomes()))
    store.put(Record(Header(cell=CELLS[1], status="skipped", reason="no rule"), empty_outcomes()))
    assert pending(Plan(CELLS, ()), store) == [CELLS[0]]


def test_the_last_run_is_remembered(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UserError, match=f"no run under {tmp_path}"):
        store.load_run()
    run = RunFile(matrix="ci", cells=[one.id for one in CELLS], skips=[("lenet+polytope", "no dual")])
    store.save_run(run)
    assert store.load_run() == run
    path = tmp_path / "run.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        store.load_run()
