"""A run killed in the middle continues, runs nothing twice and ends in the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.store import Store
from tests.bench.commands import COMMAND, ROOT, command, contents, environment, times

MATRIX = """models = ["fc500-150-10+none"]
attacks = ["fgsm", "pgd", "deepfool"]
certificates = ["ibp", "polytope"]
threats = [
    { norm = "linf", eps = "0.05" },
    { norm = "l2", eps = "0.5" },
]

[images]
cheap = 10
medium = 10
expensive = 10
extreme = 10

[parameters.pgd]
steps = 150
"""
CELLS = 10
PATIENCE = 120


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Waits until `condition` holds; whether it came to hold."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def processes_in(group: int) -> list[str]:
    """What still runs in a session, by /proc; zombies do not count."""
    left = []
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            state, _, _, session = (place / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == group and state != "Z":
            left.append(f"{place.name} {state}")
    return left


def arguments(folder: Path) -> tuple[str, ...]:
    return ("run", "--matrix", str(folder / "mine.toml"), "--workers", "1", "--out", str(folder / "out"))


def prepared(folder: Path) -> Path:
    folder.mkdir()
    (folder / "mine.toml").write_text(MATRIX, encoding="utf-8")
    return folder


def killed(folder: Path) -> None:
    """Starts the run and kills its main process alone, by SIGKILL, when some records exist."""
    main = subprocess.Popen(
        [*COMMAND, *arguments(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert until(lambda: len(times(folder / "out")) >= 1 or main.poll() is not None)
        os.kill(main.pid, signal.SIGKILL)
        main.wait(timeout=PATIENCE)
        assert until(lambda: processes_in(main.pid) == [], seconds=5), processes_in(main.pid)
    finally:
        for line in processes_in(main.pid):
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never stopped."""
    folder = prepared(tmp_path_factory.mktemp("unbroken") / "run")
    assert command(*arguments(folder)).returncode == 0
    assert len(times(folder / "out")) == CELLS
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_killed_run_continues_to_the_same_bytes(unbroken: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "run")
    killed(folder)
    finished = times(folder / "out")
    assert 1 <= len(finished) < CELLS
    assert not (folder / "out" / "leaderboards").exists()
    shown = command(*arguments(folder))
    assert shown.returncode == 0, shown.stderr
    after = times(folder / "out")
    assert len(after) == CELLS
    assert {name: after[name] for name in finished} == finished
    lines = [line for line in shown.stdout.splitlines() if line.startswith("[")]
    assert lines[-1].startswith(f"[{CELLS - len(finished)}/{CELLS - len(finished)}]")
    assert contents(folder / "out" / "leaderboards") == contents(unbroken / "out" / "leaderboards")
    one, other = Store(folder / "out"), Store(unbroken / "out")
    cells = one.load_run().cells
    assert cells == other.load_run().cells
    for mine, theirs in zip(one.many(cells), other.many(cells), strict=True):
        assert mine.outcomes.equals(theirs.outcomes)


@pytest.mark.slow
def test_ctrl_c_stops_with_one_line_and_leaves_no_worker(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "run")
    main = subprocess.Popen(
        [*COMMAND, *arguments(folder)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has them ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert until(lambda: len(times(folder / "out")) >= 1 or main.poll() is not None)
        os.killpg(main.pid, signal.SIGINT)
        _, errors = main.communicate(timeout=PATIENCE)
        assert errors == "stopped: finished cells are kept, the same command continues\n"
        assert main.returncode == 130
        assert until(lambda: processes_in(main.pid) == [], seconds=5), processes_in(main.pid)
    finally:
        for line in processes_in(main.pid):
            os.kill(int(line.split()[0]), signal.SIGKILL)


@pytest.mark.slow
def test_the_number_of_workers_does_not_show_in_the_tables(unbroken: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "run")
    two = [argument if argument != "1" else "2" for argument in arguments(folder)]
    assert command(*two).returncode == 0
    assert contents(folder / "out" / "leaderboards") == contents(unbroken / "out" / "leaderboards")


@pytest.mark.slow
def test_table_rebuilds_the_bytes_from_the_records_alone(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(unbroken / "out", folder)
    before = contents(folder / "leaderboards")
    shutil.rmtree(folder / "leaderboards")
    assert command("table", "--out", folder).returncode == 0
    assert contents(folder / "leaderboards") == before
