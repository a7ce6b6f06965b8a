"""Runs the command line as a user does, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = (sys.executable, "-m", "bench")


def environment() -> dict[str, str]:
    """This process' environment with one thread, plain output and no data root."""
    plain = {name: value for name, value in os.environ.items() if name != "RHOBUST_DATA"}
    return {**plain, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}


def command(*arguments: str | Path, cwd: Path = ROOT, program: tuple[str, ...] = COMMAND):
    """The finished process `python -m bench ARGUMENTS`, its streams as text."""
    return subprocess.run(
        [*program, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def times(folder: Path) -> dict[str, int]:
    """When each finished record was written, in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "records").glob("c1-*.parquet")}


def in_place(path: Path, content: bytes) -> None:
    """Writes a file that neither its size nor its times give away."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
