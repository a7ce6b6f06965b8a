"""The same run a second time, in processes of its own: the same bytes, without torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.finished import FILE, recall
from bench.store import Store
from tests.bench.commands import COMMAND, ROOT, command, contents, environment, in_place

MATRIX = """models = ["fc500-150-10+none"]
attacks = ["fgsm"]
certificates = ["ibp", "smoothing"]
threats = [{ norm = "linf", eps = "0.05" }, { norm = "l2", eps = "0.5" }]

[images]
cheap = 10
medium = 10
expensive = 10
extreme = 10
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ran")
    (folder / "mine.toml").write_text(MATRIX, encoding="utf-8")
    assert command(*arguments(folder)).returncode == 0
    return folder


def arguments(folder: Path) -> tuple[str, ...]:
    return ("run", "--matrix", str(folder / "mine.toml"), "--workers", "1", "--out", str(folder / "out"))


def told(folder: Path) -> tuple[int, str, str]:
    shown = command(*arguments(folder))
    return shown.returncode, shown.stdout, shown.stderr


def test_a_second_run_needs_no_torch_and_says_what_one_that_tabulates_says(ran: Path) -> None:
    code = (
        "import sys, bench.cli\n"
        f"code = bench.cli.main({list(arguments(ran))!r})\n"
        "loaded = {'torch', 'scipy', 'pandas.io.formats.html'} & {*sys.modules}\n"
        "print(f'{code} {sorted(loaded)}', file=sys.stderr)"
    )
    listed = (ran / "out" / "run.json").read_bytes()
    (ran / "out" / "run.json").unlink()
    second = subprocess.run(
        [COMMAND[0], "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert second.stderr == "0 []\n"
    assert "smoothing certifies a vote over noise alone (2 cells)" in second.stdout
    assert (ran / "out" / "run.json").read_bytes() == listed
    before = contents(ran / "out" / "leaderboards")
    (ran / "out" / FILE).unlink()
    shutil.rmtree(ran / "out" / "leaderboards")
    assert told(ran) == (0, second.stdout, "")
    assert contents(ran / "out" / "leaderboards") == before
    assert told(ran) == (0, second.stdout, "")


@pytest.mark.slow
def test_a_damaged_record_of_a_finished_run_is_run_again(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(ran, folder)
    code, shown, _ = told(folder)
    path = next((folder / "out" / "records").glob("c1-*.parquet"))
    content = path.read_bytes()
    in_place(path, content[:40] + bytes([content[40] ^ 0x10]) + content[41:])
    after, more, errors = told(folder)
    assert (code, after) == (0, 0)
    assert "damaged: its cell is run again" in errors
    assert more.endswith(shown)
    assert "[1/1]" in more


def test_two_second_runs_at_once_agree(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(ran, folder)
    _, shown, _ = told(folder)
    (folder / "out" / FILE).unlink()
    both = [
        subprocess.Popen(
            [*COMMAND, *arguments(folder)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    assert [one.communicate(timeout=300)[0] for one in both] == [shown, shown]
    assert [one.returncode for one in both] == [0, 0]
    store = Store(folder / "out")
    assert recall(store, store.load_run().cells) is not None
    assert not list((folder / "out").glob(f".{FILE}*"))
