"""`check`: this checkout against a committed baseline."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.commands.run import Request, plan_of, run_missing
from bench.execute import pending
from bench.outcomes import contradictions, gather
from bench.regress import compare, junit, load_baseline, note_on, regressed, save_baseline, summary
from bench.render import wide_console
from bench.store import Store
from models.atomic import check_writable, write_atomically
from models.errors import UserError


def execute(
    baseline: Path,
    matrix: str,
    junit_path: Path | None,
    update: bool,
    allow: int,
    workers: int | None,
    out: Path | None,
) -> int:
    """Runs the matrix and compares; returns 0 unchanged or better, 1 a regression, 2 not judged."""
    _check_options(
        allow, workers, (baseline.parent if update else None, junit_path and junit_path.parent, out)
    )
    reference = None if update else load_baseline(baseline, matrix)
    note = "" if reference is None else note_on(reference, baseline)
    if note:
        print(f"note: {note}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="rhobust-check-") as folder:
        request = Request(matrix=matrix, workers=workers, device="cpu", out=out or Path(folder))
        store, console = Store(request.out), wide_console()
        plan, _ = plan_of(request)
        for skip in plan.skips:
            console.print(f"skipped: {skip.what}: {skip.reason}", highlight=False, soft_wrap=True)
        plan = run_missing(plan, pending(plan, store), store, request, console)
        records = store.many(cell.id for cell in plan.cells)
    failed = [record for record in records if record.header.status == "failed"]
    if failed:
        for record in failed:
            print(f"failed: {record.cell.title}: {record.header.reason}", file=sys.stderr)
        raise UserError(f"{len(failed)} cells failed, so the run cannot be judged")
    outcomes = gather(records)
    clashes = contradictions(outcomes)
    for line in clashes:
        print(f"CONTRADICTION: {line}", file=sys.stderr)
    if reference is None:
        save_baseline(outcomes, baseline)
        console.print(
            f"baseline written: {baseline} ({len(outcomes)} outcomes)", highlight=False, soft_wrap=True
        )
        return 1 if clashes else 0
    moves = compare(reference, outcomes)
    for move in moves:
        if move.missing or move.worse or move.better:
            word = "regression" if regressed(move, allow) else "moved"
            console.print(f"{word}: {move.line()}", highlight=False, soft_wrap=True)
    if junit_path is not None:
        write_atomically(junit_path, junit(moves, allow).encode())
    console.print(summary(moves, baseline, allow), highlight=False, soft_wrap=True)
    return 1 if clashes or any(regressed(move, allow) for move in moves) else 0


def _check_options(allow: int, workers: int | None, folders: tuple[Path | None, ...]) -> None:
    """Raises UserError for numbers that are none, and folders into which nothing can be written."""
    if allow < 0:
        raise UserError(f"--allow must be at least 0, not {allow}")
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    for folder in folders:
        if folder is not None:
            check_writable(folder)
