"""A second run of finished cells prints what tabulating their records would, or tabulates them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from rich.console import Console

import bench.commands.table
import bench.finished
from bench.commands.table import execute, report
from bench.finished import FILE, keep, recall
from bench.record import Header, Record, empty_outcomes
from bench.store import RunFile, Store
from bench.tables import Table, all_tables
from tests.bench.builders import attacked, cell, outcomes, proved
from tests.bench.commands import contents, in_place

REACH = [0.05, None, 0.1, None]
CELLS = (
    cell("fgsm"),
    cell("pgd"),
    cell("pgd", model="fc500-150-10"),
    cell("deepfool", eps=None),
    cell("ibp", kind="certificate"),
    cell("lp", kind="certificate"),
)
IDS = [one.id for one in CELLS]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A finished run whose leaderboards were made; one of its cells was skipped."""
    made = Store(tmp_path)
    for one in CELLS[:4]:
        made.put(attacked(one, REACH, clean=[True, True, True, False]))
    made.put(proved(CELLS[4], [False, True, False, False]))
    made.put(Record(Header(cell=CELLS[5], status="skipped", reason="too wide"), empty_outcomes()))
    printed(made)
    return Store(tmp_path)


def printed(store: Store, ids: list[str] = IDS) -> str:
    """What tabulating the records prints."""
    console = Console(width=140, markup=False)
    with console.capture() as shown:
        report(store, ids, console)
    return shown.get()


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    assert len(old) == len(new)
    return content.replace(old, new, 1)


def test_what_is_kept_prints_and_leaves_the_same_without_a_record_being_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(store.leaderboards)
    again = printed(Store(store.folder))
    assert contents(store.leaderboards) == before

    def read(*_: object) -> None:
        raise AssertionError("a record was read")

    monkeypatch.setattr(Store, "_load", read)
    kept = recall(store, IDS)
    assert kept is not None
    assert kept.skipped == {CELLS[5].id: "too wide"}
    console = Console(width=140, markup=False)
    with console.capture() as shown:
        assert bench.commands.table.show_all(kept, store, console) == 0
    assert shown.get() == again
    assert "pgd" in again


def flip(store: Store) -> None:
    path = store.path(IDS[1])
    content = path.read_bytes()
    in_place(path, content[:40] + bytes([content[40] ^ 0x10]) + content[41:])


def swap(store: Store) -> None:
    """Two records of the same size, under each other's name."""
    one, other = store.path(IDS[1]), store.path(IDS[2])
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def with_kept(store: Store, change: Callable[[bytes], bytes]) -> None:
    path = store.folder / FILE
    path.write_bytes(change(path.read_bytes()))


BOARD = "linf-0.1.csv"
CHANGES: dict[str, Callable[[Store], object]] = {
    "a record has another result": lambda store: store.put(attacked(CELLS[1], [None] * 4)),
    "a record of the same size and times has a flipped bit": flip,
    "a record is gone": lambda store: store.path(IDS[3]).unlink(),
    "two records are swapped": swap,
    "a leaderboard has another number": lambda store: in_place(
        store.leaderboards / BOARD, replaced((store.leaderboards / BOARD).read_bytes(), b",0.25,", b",0.95,")
    ),
    "a leaderboard is gone": lambda store: (store.leaderboards / BOARD).unlink(),
    "all leaderboards are gone": lambda store: shutil.rmtree(store.leaderboards),
    "an older table lies among them": lambda store: (store.leaderboards / "l2-1.csv").write_text("older"),
    "what is kept is gone": lambda store: (store.folder / FILE).unlink(),
    "what is kept is empty": lambda store: with_kept(store, lambda _: b""),
    "what is kept is half": lambda store: with_kept(store, lambda text: text[: len(text) // 2]),
    "what is kept has another number": lambda store: with_kept(
        store, lambda text: replaced(text, b"75.0 %", b"95.0 %")
    ),
    "what is kept is of another form": lambda store: with_kept(
        store, lambda _: sha256(b"{}").hexdigest().encode() + b"\n{}"
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_nothing_is_recalled_when(case: str, store: Store) -> None:
    assert recall(store, IDS) is not None
    CHANGES[case](store)
    assert recall(store, IDS) is None


@pytest.mark.parametrize("ids", [IDS[:-1], IDS[1:], IDS[::-1], [*IDS, "c1-absent"]])
def test_nothing_is_recalled_for_other_cells(ids: list[str], store: Store) -> None:
    assert recall(store, ids) is None


def test_a_copy_of_a_record_under_another_name_is_another_cells(store: Store) -> None:
    shutil.copy(store.path(IDS[5]), store.path("c1-copy"))
    assert recall(store, [*IDS[:5], "c1-copy"]) is None


@pytest.mark.parametrize("name", ["fingerprint", "version"])
def test_nothing_is_recalled_from_another_suite(
    name: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.finished.suite() == bench.finished.LOADED
    monkeypatch.setattr(bench.finished, name, lambda *_: "another")
    monkeypatch.setattr(bench.finished, "LOADED", bench.finished.suite())
    assert recall(store, IDS) is None
    printed(store)
    assert recall(store, IDS) is not None
    monkeypatch.undo()
    assert recall(store, IDS) is None


def test_a_suite_that_is_updated_during_a_run_has_not_made_its_tables(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code that made them is the one that was loaded, whatever lies on disk by then."""
    with monkeypatch.context() as patch:
        patch.setattr(bench.finished, "fingerprint", lambda: "updated")
        printed(store)
        patch.setattr(bench.finished, "LOADED", bench.finished.suite())
        assert recall(store, IDS) is None


def test_a_file_of_the_users_own_beside_the_leaderboards_changes_nothing(store: Store) -> None:
    (store.leaderboards / "notes.md").write_text("mine")
    assert recall(store, IDS) is not None


@pytest.mark.parametrize("case", ["a cell failed", "a record is absent"])
def test_an_unfinished_run_is_not_kept(case: str, store: Store) -> None:
    """Recalled, it would never be run again."""
    if case == "a cell failed":
        store.put(Record(Header(cell=CELLS[5], status="failed", reason="no memory"), empty_outcomes()))
    else:
        store.path(IDS[5]).unlink()
    (store.folder / FILE).unlink()
    printed(store)
    assert not (store.folder / FILE).exists()
    assert recall(store, IDS) is None


def test_a_record_that_changes_while_tables_are_made_is_not_taken_for_the_one_that_was_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest taken afterwards would stand for a record that no table has seen."""
    gather = bench.commands.table.gather

    def overtaken(records):
        frame = gather(records)
        Store(store.folder).put(attacked(CELLS[1], [0.01, 0.01, 0.01, None]))
        return frame

    with monkeypatch.context() as patch:
        patch.setattr(bench.commands.table, "gather", overtaken)
        old = printed(store)
    assert recall(store, IDS) is None
    assert printed(store) != old
    assert recall(store, IDS) is not None


def test_leaderboards_that_another_run_wrote_in_between_are_not_taken_for_ours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest taken of the files afterwards would stand for another run's tables."""

    write = bench.commands.table.write

    def overtaken(tables: list[Table], folder: Path) -> dict[str, str]:
        written = write(tables, folder)
        write(all_tables(outcomes(attacked(CELLS[0], [0.01, 0.01, None, None]))), folder)
        return written

    with monkeypatch.context() as patch:
        patch.setattr(bench.commands.table, "write", overtaken)
        printed(store)
    assert recall(store, IDS) is None


def test_no_room_for_it_fails_no_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.folder / FILE).unlink()
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if FILE in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert "leaderboards: " in printed(store)
    assert not (store.folder / FILE).exists()


def test_table_reads_the_records_whatever_is_kept(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept is made to say something else, and to look as if it were right."""
    kept = recall(store, IDS)
    assert kept is not None
    shown = kept.sheets[0]
    lie = shown.model_copy(update={"rows": [["planted"] * len(shown.columns)]})
    keep(kept.model_copy(update={"sheets": [lie]}), store)
    planted = recall(store, IDS)
    assert planted is not None
    assert planted.sheets == [lie]
    before = contents(store.leaderboards)
    store.save_run(RunFile(matrix="mine", cells=IDS, skips=[]))
    assert execute(store.folder) == 0
    assert "planted" not in capsys.readouterr().out
    assert contents(store.leaderboards) == before
    assert recall(store, IDS) == kept
