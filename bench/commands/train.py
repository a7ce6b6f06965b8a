"""`train`: one zoo member from its recipe."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.work import pick_device
from defenses.zoo import ModelName, make
from models.checkpoint import SHIPPED, places, read_card


def execute(
    text: str, root: Path | None, download: bool, device: str, seed: int, out: Path | None, force: bool
) -> int:
    """Trains `text`, showing progress, and prints the accuracies that went into the model card."""
    name, folder, console = ModelName.parse(text), out or SHIPPED, Console()
    card = read_card(str(name), folder)
    if card is not None and not force:
        console.print(f"{name} is trained already ({places(str(name), folder)[0]}): --force trains it again")
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(str(name), total=None)
        epoch = -1
        for step in make(name, root, seed=seed, device=pick_device(device), download=download, folder=folder):
            note = f"{name} epoch {step.epoch + 1}/{step.epochs} loss {step.loss:.4f}"
            progress.update(bar, total=step.steps, completed=step.step, description=note)
            if not console.is_terminal and step.epoch != epoch:
                print(note, flush=True)
                epoch = step.epoch
    card = read_card(str(name), folder)
    assert card is not None
    for data, value in card.accuracies.items():
        console.print(f"{data}: {100 * value:.2f} %", highlight=False)
    if card.seconds is not None:
        console.print(f"trained in {card.seconds:.0f} s on {card.machine}", highlight=False)
    console.print(str(places(str(name), folder)[0]), highlight=False, soft_wrap=True)
    return 0
