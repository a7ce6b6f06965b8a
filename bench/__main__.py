"""`python -m bench` and the console command `rhobust`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

OURS = Path(__file__).resolve().parent.parent
PACKAGES = ("attacks", "bench", "certify", "defenses", "models")


def hidden_package() -> str | None:
    """The name of one of our packages that another folder on the import path hides, or None."""
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        places = (
            []
            if found is None
            else [Path(place).resolve() for place in found.submodule_search_locations or []]
        )
        if OURS / name not in places:
            return name
    return None


def main() -> None:
    """Runs the command line; refuses to start where another package hides one of ours."""
    hidden = hidden_package()
    if hidden is not None:
        print(
            f"error: another '{hidden}' on the import path hides rhobust's own (is there a folder or file "
            f"'{hidden}' in {Path.cwd()}?): run `rhobust` instead of `python -m bench`, or change folder",
            file=sys.stderr,
        )
        raise SystemExit(2)
    # Imported only now: the check above must come before anything that could pick up the wrong package.
    raise SystemExit(importlib.import_module("bench.cli").main(sys.argv[1:]))


if __name__ == "__main__":
    main()
