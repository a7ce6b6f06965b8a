"""`analyse`: one of the analyses of a report, computed and kept beside the records."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from attacks.base import ATTACKS
from attacks.pgd import PGD
from bench.analysis.landscape import landscape
from bench.analysis.regions import regions
from bench.analysis.sparsity import sparsity
from bench.analysis.stored import Analysis, Result, save
from bench.analysis.units import units
from bench.commands.evaluate import open_classifier, readable
from bench.naming import identity
from bench.registered import catalog
from bench.weights import card_hash, is_own
from bench.work import pick_device, provenance
from defenses.zoo import ModelName
from models.atomic import check_writable
from models.base import Batch, Classifier, check_inputs, frozen
from models.data import Dataset, load_data
from models.eps import parse_eps
from models.errors import UserError
from models.norms import BALLS
from models.randomness import Randomness
from models.registry import suggest
from models.threat import ThreatModel

TRIED = 200
"""So many images of the panel are searched for one that every model classifies correctly."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    kind: str
    models: tuple[str, ...]
    data: str
    out: Path
    index: int | None
    limit: int
    norm: str
    eps: str
    layer: str | None
    data_root: Path | None
    download: bool
    device: str
    seed: int


@dataclass(frozen=True)
class Opened:
    """The models and images that a request names, on its device."""

    request: Request
    dataset: Dataset
    models: list[Classifier]
    batch: Batch

    @property
    def randomness(self) -> Randomness:
        return Randomness(self.request.seed)

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(self.request.norm, parse_eps(self.request.eps), self.dataset.box)

    def sample(self) -> Batch:
        """The one image at --index, or the first of the panel that every model classifies correctly."""
        index = self.request.index
        if index is not None:
            if not 0 <= index < len(self.dataset):
                raise UserError(
                    f"--index {index}: {self.dataset.name} has images 0 to {len(self.dataset) - 1}"
                )
            return self.dataset.batch(torch.tensor([index])).to(self.batch.x.device)
        right = torch.ones(len(self.batch), dtype=torch.bool, device=self.batch.x.device)
        for model in self.models:
            with frozen(model), torch.no_grad():
                right &= model.right(self.batch.x, self.batch.y)
        if not bool(right.any()):
            raise UserError("no image that every model classifies correctly: choose one with --index")
        return self.batch[right.nonzero()[:1, 0]]


def _regions(opened: Opened) -> tuple[Result, dict[str, Any]]:
    sample = opened.sample()
    return regions(opened.models, sample, opened.randomness), {"index": int(sample.index[0])}


def _landscape(opened: Opened) -> tuple[Result, dict[str, Any]]:
    sample = opened.sample()
    return landscape(opened.models, sample), {"index": int(sample.index[0])}


def _units(opened: Opened) -> tuple[Result, dict[str, Any]]:
    request, threat = opened.request, opened.threat
    found = units(opened.models, opened.batch, threat, opened.randomness, layer=request.layer)
    settings = {"norm": request.norm, "eps": threat.radius, "limit": request.limit}
    return found, settings | {"layer": request.layer} if request.layer else settings


def _sparsity(opened: Opened) -> tuple[Result, dict[str, Any]]:
    request, threat = opened.request, opened.threat
    found = sparsity(opened.models, opened.batch, threat, opened.randomness)
    return found, {"norm": request.norm, "eps": threat.radius, "limit": request.limit}


KINDS: dict[str, Callable[[Opened], tuple[Result, dict[str, Any]]]] = {
    "landscape": _landscape,
    "regions": _regions,
    "sparsity": _sparsity,
    "units": _units,
}


def execute(request: Request) -> int:
    """Computes the analysis, writes it under OUT/analyses and prints where it lies."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    if request.kind not in KINDS:
        raise suggest("analysis", request.kind, list(KINDS))
    if request.limit < 1:
        raise UserError(f"--limit must be at least 1, not {request.limit}")
    if request.norm not in BALLS or request.norm not in ATTACKS["pgd"].norms:
        raise UserError(f"--norm {request.norm}: analyses attack with pgd, which has {', '.join(PGD.norms)}")
    opened = _open(request)
    check_writable(request.out)
    result, settings = KINDS[request.kind](opened)
    analysis = Analysis(
        data=request.data,
        models=list(request.models),
        weights={name: weights_of(name) for name in request.models},
        settings=settings,
        seed=request.seed,
        command=_command(request, settings),
        provenance=provenance(str(opened.batch.x.device), opened.dataset, started),
        result=result,
    )
    print(f"analysis: {save(request.out, analysis)}")
    print(f"drawn by: python -m bench report {shlex.quote(str(request.out))}")
    return 0


def _open(request: Request) -> Opened:
    if len(set(request.models)) < len(request.models):
        raise UserError("a model is named twice: name each one once")
    # A misspelt name is said before any model is read or trained.
    for name in request.models:
        if not is_own(name):
            ModelName.parse(name)
    dataset = load_data(request.data, request.data_root, request.download)
    single = request.kind in ("regions", "landscape")
    batch = readable(dataset, TRIED if single else request.limit, strict=False)
    models, device = [], pick_device(request.device)
    for name in request.models:
        model = open_classifier(name, batch, dataset, request.data_root, request.download).to(device)
        model.name = name
        if model.stochastic and request.kind != "sparsity":
            raise UserError(
                f"model '{name}' is randomised: it has no fixed {request.kind}, only sparsity judges it"
            )
        try:
            check_inputs(batch.to(device), model)
        except UserError as unfit:
            raise UserError(f"model '{name}' cannot take {dataset.name}: {unfit}") from None
        models.append(model)
    return Opened(request, dataset, models, batch.to(device))


def weights_of(name: str) -> str:
    """What a model's name stands for, as in the cells of a run: see bench.naming.identity."""
    return identity(name if is_own(name) else str(ModelName.parse(name)), catalog(), card_hash)


def _command(request: Request, settings: dict[str, Any]) -> str:
    """The command that computes the same analysis again."""
    options = [("--data", request.data), *((f"--{name}", value) for name, value in settings.items())]
    words = [request.kind, *request.models, *(str(word) for pair in options for word in pair)]
    return shlex.join(["python", "-m", "bench", "analyse", *words, "--seed", str(request.seed)])
