"""`verify-proof`: whether a proof or witness file holds, said by checkers that know nothing of the suite."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from bench import proof_checker, witness_checker
from models.errors import UserError


def execute(file: Path, weights: Path | None) -> int:
    """Prints the checker's answer; 0 where the file proves its claim, else 1."""
    for path in (file, *([weights] if weights is not None else [])):
        if not path.is_file():
            raise UserError(f"there is no file {path}")
    checker = witness_checker if _format(file) == witness_checker.FORMAT else proof_checker
    holds, text = checker.check(file, weights)
    print(text)
    return 0 if holds else 1


def _format(file: Path) -> str:
    """What the file says that it is, "" where it cannot be read: then it is no proof either."""
    try:
        with safe_open(file, "np") as opened:
            return str((opened.metadata() or {}).get("format", ""))
    except (OSError, SafetensorError):
        return ""
