"""The command line: parses and delegates, no logic; heavy modules load when a command runs."""

from __future__ import annotations

import errno
import inspect
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench import several, single
from bench.options import DataRoot, Device, Download, Force, Out, Proof, Seed, Site, finish, load
from models.errors import UserError

app = typer.Typer(
    name="rhobust",
    help=(
        "How far can a network's robust accuracy be pushed down, and how much of it can be proved?\n\n"
        "Start with: python -m bench run --matrix quick\n\n"
        "--debug anywhere on the line shows the traceback of an error."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


class Kind(StrEnum):
    """What can be listed."""

    attacks = "attacks"
    defenses = "defenses"
    certificates = "certificates"
    models = "models"
    data = "data"
    operations = "operations"
    matrices = "matrices"
    weights = "weights"


@app.command()
def run(
    matrix: Annotated[str, typer.Option(help="A shipped matrix (quick, full, ci) or a FILE.toml.")] = "quick",
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only this model: lenet, lenet+adversarial-pgd, or your own, file:net.py:make."),
    ] = None,
    attack: Annotated[list[str] | None, typer.Option(help="Only this attack.")] = None,
    defense: Annotated[list[str] | None, typer.Option(help="Only this defence.")] = None,
    certify: Annotated[list[str] | None, typer.Option(help="Only this certificate.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set: mnist5k (embedded), mnist, ..., npz:FILE, pt:FILE, folder:DIR."),
    ] = None,
    data_root: DataRoot = None,
    download: Download = False,
    limit: Annotated[int | None, typer.Option(help="At most this many images per cell.")] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    workers: Annotated[int | None, typer.Option(help="Worker processes (default: one per core).")] = None,
    seed: Seed = None,
    out: Out = Path("results"),
    proof: Proof = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, and how long it took.")
    ] = False,
) -> None:
    """Run a matrix: every attack and certificate on every defended model, then the leaderboards.

    Stopped at any moment, the same command continues: finished cells are kept. Options that name
    components (--model, --attack, ...) may be repeated. Exit code: 0 done, 1 some cell failed or a
    proof and an attack contradict each other, 2 the request could not be carried out.
    """
    request = load("run").Request(
        matrix=matrix,
        models=tuple(model or ()),
        attacks=tuple(attack or ()),
        defenses=tuple(defense or ()),
        certificates=tuple(certify or ()),
        data=data,
        data_root=data_root,
        download=download,
        limit=limit,
        device=device.value,
        workers=workers,
        seed=seed,
        out=out,
        proof=proof,
    )
    finish("run", request, dry_run)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A model, lenet or conv-small+polytope.")],
    data_root: DataRoot = None,
    download: Download = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the weights (default: the shipped zoo).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train again although weights are there.")] = False,
) -> None:
    """Train a zoo member from its recipe; an interrupted training continues from its last epoch."""
    finish("train", name, data_root, download, device.value, seed, out, force)


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List what is registered, what certificates understand of a network, or the weights that ship."""
    finish("catalogue", kind.value, json)


@app.command()
def table(out: Out = Path("results")) -> None:
    """Rebuild the leaderboards of the last run from its records, byte for byte."""
    finish("table", out)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs (default: results).")] = None,
    out: Site = Path("report"),
    force: Force = False,
) -> None:
    """Write a site of the stored records, OUT/index.html, that opens from disk without network.

    Exit code: 0 written, 1 written, but a proof and an attack contradict each other, 2 not written.
    """
    finish("report", tuple(runs or ()), out, force)


@app.command()
def compare(
    sides: Annotated[list[str], typer.Argument(help="Two or three folders of runs, or RUN@MODEL each.")],
    out: Site = Path("comparison"),
    force: Force = False,
) -> None:
    """Compare runs, or models (results@lenet results@conv-small), sample by sample, regressions first."""
    finish("compare", tuple(sides), out, force)


@app.command()
def check(
    baseline: Annotated[Path, typer.Option(help="Baseline to compare with.")] = Path(
        "results/baselines/ci.parquet"
    ),
    matrix: Annotated[str, typer.Option(help="The matrix that the baseline was made with.")] = "ci",
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML here.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write the baseline instead of comparing.")
    ] = False,
    allow: Annotated[
        int, typer.Option(help="Samples of a cell that may get worse without a regression.")
    ] = 0,
    workers: Annotated[int | None, typer.Option(help="Worker processes (default: one per core).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the records here (default: a temporary folder).")
    ] = None,
) -> None:
    """Compare this checkout with a committed baseline, sample by sample.

    Of the baseline's own network, what its attacks no longer break and its certificates no longer prove is
    worse; of another one under its name (your model, trained again), what they newly break.

    Exit code: 0 unchanged or better, 1 a regression, 2 it could not be judged.
    """
    finish("check", baseline, matrix, junit, update, allow, workers, out)


single.register(app)
several.register(app)
for entry in app.registered_commands:
    # Lines that are broken for the source would be broken again for the terminal, each for itself.
    paragraphs = inspect.cleandoc(entry.callback.__doc__ or "" if entry.callback else "").split("\n\n")
    entry.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def main(arguments: list[str]) -> int:
    """Runs one command; returns its exit code. `--debug` anywhere shows tracebacks."""
    debug = "--debug" in arguments
    rest = [argument for argument in arguments if argument != "--debug"]
    try:
        app(args=rest, prog_name="rhobust")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if debug:
            traceback.print_exc()
        where = error.filename or "a file"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way = "make room, the same command continues" if full else "name a place that is there and open"
        print(f"error: {where}: {error.strerror or error}: {way}", file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"internal error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 2
    return 0
