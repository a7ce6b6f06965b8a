"""`audit`: whether one model's robust accuracy can be believed."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from bench.analysis.stored import Analysis, Audited, Rung, save
from bench.auditor import Audit, audit
from bench.commands.analyse import weights_of
from bench.commands.evaluate import opened
from bench.record import Provenance
from bench.render import wide_console
from bench.weights import is_own
from bench.work import provenance
from defenses.zoo import ModelName, load
from models.architecture import MODELS
from models.atomic import check_writable
from models.base import Classifier
from models.checkpoint import read_card
from models.data import load_data


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
    out: Path | None = None,
) -> int:
    """Prints one row a rung and the verdict, and keeps them under `out`; 1 where some rung failed."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    classifier, batch = opened(model, data, limit, root, download, device, lenient=True)
    if out is not None:
        check_writable(out)
    others = _sources(model, tuple(batch.x.shape[1:]), classifier.num_classes, data)
    sources = tuple(source.to(classifier.device) for source in others)
    result = audit(classifier, batch.x, batch.y, norm=norm, eps=eps, sources=sources, seed=seed)
    if out is not None:
        name = model if is_own(model) else str(ModelName.parse(model))
        proof = provenance(str(classifier.device), load_data(data, root, download), started)
        print(f"audit: {save(out, kept(result, name, data, limit, seed, proof))}")
    console = wide_console()
    table = Table("rung", "result", "detail")
    for rung in result.rungs:
        style = "green" if rung.passed else "bold red"
        table.add_row(rung.name, Text("passed" if rung.passed else "FAILED", style=style), Text(rung.detail))
    console.print(table)
    console.print(Text(result.verdict()), soft_wrap=True)
    return 1 if result.flags else 0


def kept(result: Audit, name: str, data: str, limit: int, seed: int, proof: Provenance) -> Analysis:
    """An audit as plain data with what made it and the command that makes it again."""
    settings = {"norm": result.norm, "eps": result.eps, "limit": limit}
    options = {"data": data, **settings, "seed": seed}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    return Analysis(
        data=data,
        models=[name],
        weights={name: weights_of(name)},
        settings=settings,
        seed=seed,
        command=shlex.join(["python", "-m", "bench", "audit", name, *words]),
        provenance=proof,
        result=Audited(
            norm=result.norm,
            eps=result.eps,
            n=result.n,
            clean=result.clean,
            naive=result.naive,
            attacked=result.attacked,
            rungs=[Rung(name=rung.name, passed=rung.passed, detail=rung.detail) for rung in result.rungs],
            reliable=result.reliable,
            seconds=result.seconds,
        ),
    )


def _sources(model: str, shape: tuple[int, ...], classes: int, data: str) -> list[Classifier]:
    """The undefended networks of the shipped zoo that judge such images, but for the model itself."""
    if not data.startswith("mnist"):
        return []
    names = [name for name in MODELS if MODELS[name].input_shape == shape and read_card(name) is not None]
    found = [load(ModelName.parse(name)) for name in names if name != model]
    return [source for source in found if source.num_classes == classes]
