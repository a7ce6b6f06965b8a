"""`run`: a matrix from plan to leaderboards."""

from __future__ import annotations

import functools
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.catalog import load
from bench.cell import Cell
from bench.commands.table import report, show_all
from bench.execute import execute as execute_cells
from bench.execute import pending
from bench.executors.local import LocalExecutor, cores
from bench.finished import recall
from bench.naming import trained_name
from bench.parameters import check_parameters
from bench.plan import Filters, Plan, make_plan, with_own
from bench.record import Header
from bench.render import wide_console
from bench.spec import matrix_text, place_of, read_matrix
from bench.store import RunFile, Store
from bench.weights import card_hash, is_own, with_hash
from models.atomic import check_writable
from models.errors import UserError


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line."""

    matrix: str
    models: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    defenses: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    data: str | None = None
    data_root: Path | None = None
    download: bool = False
    limit: int | None = None
    device: str = "auto"
    workers: int | None = None
    seed: int | None = None
    out: Path = Path("results")
    proof: Path | None = None


def plan_of(request: Request) -> tuple[Plan, str]:
    """The cells that the request asks for, and the matrix' name."""
    spec = read_matrix(request.matrix).limited(request.limit)
    changes: dict[str, object] = {}
    data = spec.data if request.data is None else request.data
    changes["data"] = with_hash(data) if is_own(data) else data
    if request.data is not None and is_own(data):
        # Nothing is known to transfer to images of another kind.
        changes["sources"] = ()
    if request.seed is not None:
        changes["seed"] = request.seed
    spec = spec.model_copy(update=changes)
    filters = Filters(request.models, request.defenses, request.attacks, request.certificates)
    catalog = with_own(load(), (*request.models, *spec.models), spec.data)
    check_parameters(spec, catalog, request.matrix)
    return make_plan(spec, catalog, card_hash, filters), spec.name


def execute(request: Request, dry_run: bool) -> int:
    """Runs what is still missing, writes and prints the leaderboards; returns the exit code."""
    console = wide_console()
    if request.workers is not None and request.workers < 1:
        raise UserError(f"--workers must be at least 1, not {request.workers}")
    plan, name = plan_of(request)
    if not plan.cells:
        why = "no judge has images and a norm that the matrix' threats use"
        raise UserError(f"nothing to run: {next((f'{skip.what} {skip.reason}' for skip in plan.skips), why)}")
    if not dry_run:
        for folder in filter(None, (request.out, request.proof)):
            check_writable(folder)
    store = Store(request.out)
    # What would run, and proof and witness files, are read off the records themselves.
    direct = dry_run or request.proof is not None
    kept = None if direct else recall(store, [cell.id for cell in plan.cells])
    if kept is not None:
        _remember(plan, name, request, store)
        _show_skips(plan, kept.skipped, console)
        return show_all(kept, store, console)
    waiting = pending(plan, store)
    for cell in waiting:
        header = store.header(cell.id)
        if store.path(cell.id).exists() and (header is None or header.status != "failed"):
            print(f"record {store.path(cell.id)} is damaged: its cell is run again", file=sys.stderr)
    if dry_run:
        return _show_plan(plan, waiting, store, console)
    plan = run_missing(plan, waiting, store, request, console)
    cells = _remember(plan, name, request, store)
    failed = _explain(plan, store, console)
    if request.proof is not None:
        asked = (request.proof, cells, store, settings_of(request))
        importlib.import_module("bench.proofs").write_run_proofs(*asked)
        importlib.import_module("bench.witnesses").write_run_witnesses(*asked)
    if not any(header is not None and header.status == "done" for header in map(store.header, cells)):
        return failed
    return max(failed, report(store, cells, console))


def _remember(plan: Plan, name: str, request: Request, store: Store) -> list[str]:
    """Keeps what was asked for, for `table`; returns the plan's cells."""
    cells, skips = [cell.id for cell in plan.cells], [(skip.what, skip.reason) for skip in plan.skips]
    store.save_run(RunFile(matrix=name, cells=cells, skips=skips, text=matrix_text(request.matrix)))
    return cells


def settings_of(request: Request) -> Any:
    """How the request's cells run: bench.work.Settings, which needs torch."""
    work = importlib.import_module("bench.work")
    return work.Settings(request.data_root, request.download, work.pick_device(request.device), request.out)


def run_missing(plan: Plan, waiting: list[Cell], store: Store, request: Request, console: Console) -> Plan:
    """Trains what is missing, runs what is waiting; returns the plan with the weights' hashes known.

    Raises UserError for a value that a component refuses, and where another process runs into the folder.
    """
    if not waiting:
        return plan
    _check_values(waiting, request.matrix)
    with store.claimed():
        # Whoever held the folder before may have finished some of them.
        return _run(plan, pending(plan, store), store, request, console)


def _run(plan: Plan, waiting: list[Cell], store: Store, request: Request, console: Console) -> Plan:
    """What `run_missing` does in a folder that is its own."""
    if not waiting:
        return plan
    work, settings = importlib.import_module("bench.work"), settings_of(request)
    members = {cell.defended for cell in plan.cells}
    members |= {source for cell in plan.cells for source in cell.judge.sources}
    catalog = with_own(load(), tuple(members), "")
    absent = sorted(
        name for name in {trained_name(name, catalog) for name in members} if card_hash(name) == "untrained"
    )
    with LocalExecutor(1 if settings.device == "cuda" else request.workers or cores()) as executor:
        for name in absent:
            console.print(
                f"training {name}, whose weights are absent (bench train shows progress)", highlight=False
            )
            try:
                executor.call(functools.partial(work.prepare, settings=settings), (plan.cells[0].data, name))
            except UserError as reason:
                print(f"{name} stays untrained, its cells fail: {reason}", file=sys.stderr)
        executor.call(functools.partial(work.prepare, settings=settings), (plan.cells[0].data, None))
        for name in sorted(filter(is_own, members)):
            tried = functools.partial(work.try_out, settings=settings)
            for note in executor.call(tried, (plan.cells[0].data, name)):
                print(f"note: {note}", file=sys.stderr)
        if absent:
            plan, _ = plan_of(request)
            waiting = pending(plan, store)
        if not waiting:
            return plan
        # Few images mean dear ones: started first, they leave no long tail.
        ordered = sorted(waiting, key=lambda cell: cell.images)
        keep_panel = importlib.import_module("bench.panel").keep_panel
        most = max(cell.images for cell in plan.cells)
        executor.call(functools.partial(keep_panel, settings=settings), (plan.cells[0].data, most))
        run_cell = functools.partial(work.run_cell, settings=settings)
        records = execute_cells(ordered, run_cell, store, executor)
        with _progress(console) as progress:
            bar = progress.add_task(ordered[0].title, total=len(ordered))
            open_cells = {cell.id: cell for cell in ordered}
            for number, record in enumerate(records, start=1):
                del open_cells[record.cell.id]
                current = next(iter(open_cells.values()), record.cell)
                progress.update(bar, advance=1, description=current.title)
                if not console.is_terminal:
                    print(f"[{number}/{len(ordered)}] {_line(record.header)}", flush=True)
    return plan


def _check_values(waiting: list[Cell], matrix: str) -> None:
    """Raises UserError naming the matrix for a value that a component refuses, before any compute."""
    try:
        importlib.import_module("bench.buildable").check_buildable(waiting)
    except UserError as reason:
        raise UserError(f"{place_of(matrix)}: {reason}") from None


def _progress(console: Console) -> Progress:
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _line(header: Header) -> str:
    state = f"{header.wall_seconds:.1f} s" if header.status == "done" else f"{header.status}: {header.reason}"
    return f"{header.cell.title}: {state}"


def _show_plan(plan: Plan, waiting: list[Cell], store: Store, console: Console) -> int:
    """Prints what would run and what is done, with the time that finished cells took."""
    todo = {cell.id for cell in waiting}
    known = 0.0
    for cell in plan.cells:
        header = store.header(cell.id)
        seconds = header.wall_seconds if header else 0.0
        known += seconds
        state = "would run" if cell.id in todo else "done"
        took = f", took {seconds:.1f} s" if seconds else ""
        console.print(f"{state:9} {cell.title}{took}", highlight=False, soft_wrap=True)
    for skip in plan.skips:
        console.print(f"skipped   {skip.what}: {skip.reason}", highlight=False, soft_wrap=True)
    took = f"; the others took {known:.0f} s of one core" if len(todo) < len(plan.cells) else ""
    console.print(f"{len(plan.cells)} cells, {len(todo)} to run{took}", highlight=False)
    return 0


def _explain(plan: Plan, store: Store, console: Console) -> int:
    """Prints every skip and failure with its reason; returns 1 where a cell failed."""
    failed = 0
    skipped = {}
    for cell in plan.cells:
        header = store.header(cell.id)
        if header is not None and header.status == "skipped":
            skipped[cell.id] = header.reason
        elif header is None or header.status == "failed":
            failed += 1
            reason = header.reason if header else "no record"
            print(f"failed: {cell.title}: {reason}", file=sys.stderr)
    _show_skips(plan, skipped, console)
    if failed:
        print(f"{failed} of {len(plan.cells)} cells failed; the others are kept", file=sys.stderr)
    return 1 if failed else 0


def _show_skips(plan: Plan, skipped: dict[str, str], console: Console) -> None:
    """Prints what the plan leaves out and, by reason, how many cells were `skipped`."""
    groups: dict[str, int] = {}
    for cell in plan.cells:
        if cell.id in skipped:
            line = f"skipped: {cell.judge.label} on {cell.defended}: {skipped[cell.id]}"
            groups[line] = groups.get(line, 0) + 1
    for skip in plan.skips:
        console.print(f"skipped: {skip.what}: {skip.reason}", highlight=False, soft_wrap=True)
    for line, count in groups.items():
        console.print(f"{line} ({count} cells)", highlight=False, soft_wrap=True)
