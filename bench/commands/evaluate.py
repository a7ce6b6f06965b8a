"""`evaluate`: the bracket of one model, the zoo's or the user's own, on one data set."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bench.evaluation import bracket, read_threat, suspicions
from bench.judges import Judges
from bench.proofs import write_proofs
from bench.witnesses import write_witnesses
from bench.work import pick_device
from defenses.zoo import ModelName, load
from models.atomic import check_writable
from models.base import Batch, Classifier, frozen
from models.data import Dataset, load_data
from models.datasets.encoded import CorruptImage
from models.errors import UserError
from models.sources.base import is_source
from models.sources.opening import open_model

FILES = {
    ".py": "file:{}:FUNCTION",
    ".onnx": "onnx:{}",
    ".pt2": "exported:{}",
    **dict.fromkeys((".pt", ".pth"), "torchscript:{}, or file:NET.py:FUNCTION@weights={}"),
    ".safetensors": "file:NET.py:FUNCTION@weights={}",
}


def execute(
    model: str,
    data: str,
    norm: str,
    eps: str,
    limit: int,
    attacks: tuple[str, ...],
    certificates: tuple[str, ...],
    root: Path | None,
    download: bool,
    strict: bool,
    device: str,
    seed: int,
    proof: Path | None = None,
    seconds: float | None = None,
) -> int:
    """Prints the clean accuracy as soon as it is known, then the bracket; returns the exit code.

    `proof` is a folder for the proof files of the certified samples and the witness files of the broken ones;
    `seconds` is the judges' time.
    """
    check_limit(limit)
    threat, judges = read_threat(norm, eps), Judges.named(attacks or None, certificates or None, norm)
    dataset = load_data(data, root, download)
    if dataset.classes:
        print(f"classes: {', '.join(f'{number} {name}' for number, name in enumerate(dataset.classes))}")
    batch = readable(dataset, limit, strict)
    classifier = open_classifier(model, batch, dataset, root, download).to(pick_device(device))
    batch = batch.to(classifier.device)
    if proof is not None:
        check_writable(proof)
    with frozen(classifier), torch.no_grad():
        right = torch.cat([classifier.right(part.x, part.y) for part in batch.split(64)])
    print(f"clean: {100 * float(right.double().mean()):.1f} % of {len(batch)} images", flush=True)
    for line in suspicions(classifier, batch, threat):
        print(f"note: {line}", file=sys.stderr, flush=True)
    result = bracket(classifier, batch, threat, judges, seconds=seconds, seed=seed, tell=tell)
    print(result)
    if proof is not None:
        write_proofs(proof, classifier, batch, result)
        write_witnesses(proof, classifier, batch, result, judges, seed)
    return 0


def tell(line: str) -> None:
    """Says how far the judges are, to people alone."""
    if sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def check_limit(limit: int) -> None:
    """Raises UserError for a number of images that leaves none."""
    if limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")


def readable(dataset: Dataset, limit: int, strict: bool) -> Batch:
    """The first `limit` images of the panel; corrupt ones are left out and counted, unless `strict`."""
    waiting, skipped = dataset.panel(None), 0
    kept: list[Batch] = []
    while len(waiting) and sum(map(len, kept)) < limit:
        wanted, waiting = waiting[: limit - sum(map(len, kept))], waiting[limit - sum(map(len, kept)) :]
        while len(wanted):
            try:
                kept.append(dataset.batch(wanted))
                break
            except CorruptImage as corrupt:
                if strict:
                    raise
                wanted, skipped = wanted[wanted != corrupt.place], skipped + 1
    if skipped:
        line = "1 image" if skipped == 1 else f"{skipped} images"
        print(f"left out, as they cannot be decoded: {line}", file=sys.stderr)
    if not kept:
        raise UserError(f"{dataset.name} has no image that can be decoded")
    return Batch(*(torch.cat([getattr(part, name) for part in kept]) for name in ("x", "y", "index")))


def opened(
    model: str,
    data: str,
    limit: int,
    root: Path | None,
    download: bool,
    device: str,
    *,
    lenient: bool = False,
) -> tuple[Classifier, Batch]:
    """A model on its device, and `limit` images of a data set for it; corrupt images are left out."""
    check_limit(limit)
    dataset = load_data(data, root, download)
    batch = readable(dataset, limit, strict=False)
    classifier = open_classifier(model, batch, dataset, root, download, lenient=lenient)
    return classifier.to(pick_device(device)), batch


def open_classifier(
    model: str, batch: Batch, dataset: Dataset, root: Path | None, download: bool, *, lenient: bool = False
) -> Classifier:
    """The zoo's model or the user's own, fit for these images; notes on the latter go to stderr."""
    if not is_source(model):
        if Path(model).suffix in FILES:
            raise UserError(
                f"'{model}' is no model of the zoo: write {FILES[Path(model).suffix].replace('{}', model)}"
            )
        name = ModelName.parse(model)
        needed, given = name.parts()[0].input_shape, tuple(batch.x.shape[1:])
        if needed != given:
            raise UserError(f"model '{model}' judges inputs of shape {needed}, {dataset.name} has {given}")
        return load(name, root=root, download=download)
    opened = open_model(model, batch, dataset.num_classes, lenient=lenient)
    for note in opened.notes:
        print(f"note: {note}", file=sys.stderr)
    return opened.classifier
