"""What the commands share: the options that mean the same in all of them, and how one is carried out."""

from __future__ import annotations

import importlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from models.errors import UserError


class Device(StrEnum):
    """Where networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


KEPT = {
    "run": "finished cells are kept, the same command continues",
    "check": "finished cells are kept where --out names a folder, the same command continues",
    "train": "finished epochs are kept, the same command continues",
    "smallest": "the rows of finished images are kept where --out names a file",
    "certify": "a batch keeps its finished rows, the same command continues",
}
"""What a command that is interrupted leaves behind; the others compute one answer and leave nothing."""

Out = Annotated[Path, typer.Option(help="Folder of records and leaderboards.")]
DataRoot = Annotated[
    Path | None, typer.Option(envvar="RHOBUST_DATA", help="Folder that holds data sets (MNIST/raw, ...).")
]
Download = Annotated[bool, typer.Option("--download", help="Fetch a data set that is not under --data-root.")]
Weights = Annotated[
    Path | None, typer.Option(help="State dictionary of your own MODEL (.pt, .pth or .safetensors).")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse corrupt images instead of skipping.")]
Norm = Annotated[
    str,
    typer.Option(
        help="linf, l2, l1; or spatial, rotation, translation, flow, lighting, brightness, contrast, "
        "corruption, patch, mask."
    ),
]
Proof = Annotated[
    Path | None, typer.Option(help="Write a proof file per certified image here, a witness per broken one.")
]
Seconds = Annotated[
    float | None, typer.Option(help="Stop the judges after this time; the rest is not judged.")
]
Site = Annotated[Path, typer.Option("--out", help="Folder of the site, which must not exist.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an older report at --out.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice (the matrix has its own).")]


def with_weights(model: str, weights: Path | None) -> str:
    """A user's own model with the weights of --weights; raises UserError for one of the zoo."""
    if weights is None:
        return model
    if ":" not in model:
        raise UserError(f"--weights goes with a model of your own, SOURCE:PLACE, not with '{model}'")
    return f"{model}@weights={weights}"


def load(name: str) -> Any:
    """The module that carries out the command `name`, imported now."""
    return importlib.import_module(f"bench.commands.{name}")


def finish(command: str, *arguments: Any) -> NoReturn:
    """Runs a command's module and leaves with the exit code that it returns."""
    try:
        code = int(load(command).execute(*arguments))
    except KeyboardInterrupt:
        print(f"stopped: {KEPT.get(command, 'nothing is kept')}", file=sys.stderr)
        code = 130
    raise typer.Exit(code)
