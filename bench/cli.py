"""The command line: parses and delegates, no logic; heavy modules load when a command runs."""

from __future__ import annotations

import importlib
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

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


class Device(StrEnum):
    """Where networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Kind(StrEnum):
    """What can be listed."""

    attacks = "attacks"
    defenses = "defenses"
    certificates = "certificates"
    models = "models"
    data = "data"
    matrices = "matrices"


Out = Annotated[Path, typer.Option(help="Folder of records and leaderboards.")]
DataRoot = Annotated[
    Path | None, typer.Option(envvar="RHOBUST_DATA", help="Folder that holds data sets (MNIST/raw, ...).")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a data set that is not under --data-root.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice (the matrix has its own).")]


def _load(name: str) -> Any:
    return importlib.import_module(f"bench.commands.{name}")


def _finish(command: str, *arguments: Any) -> NoReturn:
    """Runs a command's module and leaves with the exit code that it returns."""
    try:
        code = int(_load(command).execute(*arguments))
    except KeyboardInterrupt:
        print("stopped: finished cells are kept, the same command continues", file=sys.stderr)
        code = 130
    raise typer.Exit(code)


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
        str | None, typer.Option(help="Data set: mnist5k (embedded), mnist, ..., npz:FILE, folder:DIR.")
    ] = None,
    data_root: DataRoot = None,
    download: Download = False,
    limit: Annotated[int | None, typer.Option(help="At most this many images per cell.")] = None,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    workers: Annotated[int | None, typer.Option(help="Worker processes (default: one per core).")] = None,
    seed: Seed = None,
    out: Out = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, and how long it took.")
    ] = False,
) -> None:
    """Run a matrix: every attack and certificate on every defended model, then the leaderboards.

    Stopped at any moment, the same command continues: finished cells are kept. Options that name
    components (--model, --attack, ...) may be repeated. Exit code: 0 done, 1 some cell failed or a
    proof and an attack contradict each other, 2 the request could not be carried out.
    """
    request = _load("run").Request(
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
    )
    _finish("run", request, dry_run)


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
    _finish("train", name, data_root, download, device.value, seed, out, force)


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List what is registered: attacks, defenses, certificates, models, data or matrices."""
    _finish("catalogue", kind.value, json)


@app.command()
def table(out: Out = Path("results")) -> None:
    """Rebuild the leaderboards of the last run from its records, byte for byte."""
    _finish("table", out)


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

    Exit code: 0 unchanged or better, 1 a regression, 2 it could not be judged.
    """
    _finish("check", baseline, matrix, junit, update, allow, workers, out)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A zoo name, or your own: file:net.py:make, onnx:net.onnx, ...")
    ],
    data: Annotated[
        str, typer.Option(help="mnist5k, mnist, ..., npz:FILE, folder:DIR or parquet:PLACE.")
    ] = "mnist5k",
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    eps: Annotated[str, typer.Option(help="Radius, in units of [0, 1]: 0.1 or 8/255.")] = "8/255",
    limit: Annotated[int, typer.Option(help="How many images, balanced over the classes.")] = 100,
    attack: Annotated[list[str] | None, typer.Option(help="Only this attack.")] = None,
    certify: Annotated[list[str] | None, typer.Option(help="Only this certificate.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse corrupt images instead of skipping.")
    ] = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Bracket the robust accuracy of one model, the zoo's or your own, and print it.

    MODEL is SOURCE:PLACE with SOURCE one of file, python, onnx, torchscript, exported, torchvision,
    timm, robustbench: file:net.py:make,width=32@mean=0.13@std=0.31 calls make(width=32) and
    normalises the inputs. @mean, @std, @box, @classes and @weights may stand in net.toml as well.
    """
    _finish(
        "evaluate",
        model,
        data,
        norm,
        eps,
        limit,
        tuple(attack or ()),
        tuple(certify or ()),
        data_root,
        download,
        strict,
        device.value,
        seed,
    )


@app.command()
def certify(
    onnx: Annotated[Path | None, typer.Option(help="Network: FILE.onnx or .onnx.gz.")] = None,
    vnnlib: Annotated[Path | None, typer.Option(help="Property: FILE.vnnlib or .vnnlib.gz.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds (default 300; in a batch, the file's own).")
    ] = None,
    witness: Annotated[
        Path | None, typer.Option(help="Write the counterexample here (in a batch: a folder).")
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(help="Run every onnx,vnnlib,timeout line of this file.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="The batch's answers, one row each (default results.csv).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the searches.")] = 0,
) -> None:
    """Prove or break a VNN-LIB property of an ONNX network, as in VNN-COMP.

    The first line on stdout is unsat (proved), sat (broken: the counterexample follows), unknown or
    timeout. A stopped batch keeps its finished rows; the same command continues. Exit code: 0
    answered, 1 some instance of a batch failed, 2 the request could not be carried out.
    """
    _finish("certify", onnx, vnnlib, timeout, witness, batch, results, seed)


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
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"internal error: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 2
    return 0
