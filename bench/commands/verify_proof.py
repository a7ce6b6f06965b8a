"""`verify-proof`: whether a proof file holds, said by a checker that knows nothing of the suite."""

from __future__ import annotations

from pathlib import Path

from bench.proof_checker import check
from models.errors import UserError


def execute(file: Path, weights: Path | None) -> int:
    """Prints the checker's answer; 0 where the file proves its claim, else 1."""
    for path in (file, *([weights] if weights is not None else [])):
        if not path.is_file():
            raise UserError(f"there is no file {path}")
    proved, text = check(file, weights)
    print(text)
    return 0 if proved else 1
