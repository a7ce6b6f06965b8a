"""`audit`: whether one model's robust accuracy can be believed."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from bench.auditor import audit
from bench.commands.evaluate import opened
from bench.render import wide_console
from defenses.zoo import ModelName, load
from models.architecture import MODELS
from models.base import Classifier
from models.checkpoint import read_card


def execute(
    model: str,
    data: str,
    norm: str,
    eps: str,
    limit: int,
    root: Path | None,
    download: bool,
    device: str,
    seed: int,
) -> int:
    """Prints one row a rung and the verdict; 1 where some rung failed."""
    classifier, batch = opened(model, data, limit, root, download, device)
    sources = tuple(
        source.to(classifier.device) for source in _sources(model, tuple(batch.x.shape[1:]), data)
    )
    result = audit(classifier, batch.x, batch.y, norm=norm, eps=eps, sources=sources, seed=seed)
    console = wide_console()
    table = Table("rung", "result", "detail")
    for rung in result.rungs:
        style = "green" if rung.passed else "bold red"
        table.add_row(rung.name, Text("passed" if rung.passed else "FAILED", style=style), Text(rung.detail))
    console.print(table)
    console.print(Text(result.verdict()), soft_wrap=True)
    return 1 if result.flags else 0


def _sources(model: str, shape: tuple[int, ...], data: str) -> list[Classifier]:
    """The undefended networks of the shipped zoo that judge such images, but for the model itself."""
    if not data.startswith("mnist"):
        return []
    names = [name for name in MODELS if MODELS[name].input_shape == shape and read_card(name) is not None]
    return [load(ModelName.parse(name)) for name in names if name != model]
