"""The command that makes a record again."""

from __future__ import annotations

import re
import shlex

from bench.cell import Cell
from bench.spec import matrix_names
from bench.weights import is_own


def command(cell: Cell, matrix: str) -> str:
    """The shell line whose plan holds this cell, given the name of the matrix that asked for it.

    It runs the judge under every threat of the matrix; records that are there are kept.
    """
    name = matrix if matrix in matrix_names() else f"{matrix}.toml"
    words = ["python", "-m", "bench", "run", "--matrix", name]
    words += ["--data", re.sub(r"@[0-9a-f]{16}$", "", cell.data), "--model", cell.defended]
    if cell.defense == "none" and not is_own(cell.model):
        words += ["--defense", "none"]
    option = "--attack" if cell.judge.kind == "attack" else "--certify"
    words += [option, cell.judge.name, "--limit", str(cell.images), "--seed", str(cell.seed)]
    return shlex.join(words)
