"""`train`: one zoo member from its recipe, after those that it goes on from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.work import pick_device
from defenses.training import TrainingStep
from defenses.zoo import ModelName, home, make
from models.atomic import check_writable
from models.checkpoint import SHIPPED, places, read_card


def execute(
    text: str, root: Path | None, download: bool, device: str, seed: int, out: Path | None, force: bool
) -> int:
    """Trains `text`, showing progress, and prints the accuracies that went into the model card.

    Weights that it goes on from, and that are neither in `out` nor shipped, are trained before it.
    """
    name, folder, console = ModelName.parse(text), out or SHIPPED, Console(markup=False)
    card = read_card(str(name), folder)
    if card is not None and not force:
        console.print(f"{name} is trained already ({places(str(name), folder)[0]}): --force trains it again")
        return 0
    # What refuses a later stage, or its weights, is said before an earlier one is trained.
    name.parts()
    check_writable(folder)
    for stage in (*_missing(name, folder), name):
        steps = make(stage, root, seed=seed, device=pick_device(device), download=download, folder=folder)
        _show(str(stage), steps, console)
    card = read_card(str(name), folder)
    assert card is not None
    for data, value in card.accuracies.items():
        console.print(f"{data}: {100 * value:.2f} %", highlight=False)
    if card.seconds is not None:
        console.print(f"trained in {card.seconds:.0f} s on {card.machine}", highlight=False)
    console.print(str(places(str(name), folder)[0]), highlight=False, soft_wrap=True)
    return 0


def _missing(name: ModelName, folder: Path) -> list[ModelName]:
    """What `name` goes on from and has no weights, the first to train first."""
    start = name.start
    if start is None or home(start, folder):
        return []
    return [*_missing(start, folder), start]


def _show(name: str, steps: Iterable[TrainingStep], console: Console) -> None:
    """Runs a training, with a bar on a terminal and a line an epoch elsewhere."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=None)
        epoch = -1
        for step in steps:
            note = f"{name} epoch {step.epoch + 1}/{step.epochs} loss {step.loss:.4f}"
            progress.update(bar, total=step.steps, completed=step.step, description=note)
            if not console.is_terminal and step.epoch != epoch:
                print(note, flush=True)
                epoch = step.epoch
