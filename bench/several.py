"""The command on several models of the user's choice: analyse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.options import DataRoot, Device, Download, Out, finish, load


def analyse(
    kind: Annotated[str, typer.Argument(help="regions, landscape, units or sparsity.")],
    models: Annotated[
        list[str], typer.Argument(help="Zoo names, or your own: file:net.py:make, ...; drawn side by side.")
    ],
    data: Annotated[
        str, typer.Option(help="mnist5k, mnist, ..., npz:FILE, pt:FILE, folder:DIR or parquet:PLACE.")
    ] = "mnist5k",
    out: Out = Path("results"),
    index: Annotated[
        int | None,
        typer.Option(help="Image of regions and landscape (default: one that all models get right)."),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many images units and sparsity rest on.")] = 200,
    norm: Annotated[str, typer.Option(help="linf, l2 or l1, for units and sparsity.")] = "linf",
    eps: Annotated[str, typer.Option(help="Radius of units, and the largest of sparsity.")] = "0.1",
    layer: Annotated[
        str | None, typer.Option(help="Activation that units looks into (default: the last).")
    ] = None,
    data_root: DataRoot = None,
    download: Download = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Compute one analysis of models and keep it under OUT/analyses, where `report` finds and draws it.

    regions: decisions on the plane of the first model's gradient and a random direction. landscape: the
    loss over rotations and translations. units: hidden units that an attack exploits, and the attack
    without them. sparsity: accuracy against eps.
    """
    request = load("analyse").Request(
        kind=kind,
        models=tuple(models),
        data=data,
        out=out,
        index=index,
        limit=limit,
        norm=norm,
        eps=eps,
        layer=layer,
        data_root=data_root,
        download=download,
        device=device.value,
        seed=seed,
    )
    finish("analyse", request)


def register(app: typer.Typer) -> None:
    """Adds this command to the command line."""
    app.command()(analyse)
