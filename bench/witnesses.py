"""One witness file per broken sample, of an evaluation or of a finished matrix."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from attacks.base import Attack
from bench.evaluation import Evaluation
from bench.judges import Judges
from bench.outcomes import broken_at
from bench.record import Record
from bench.report.grid import slug
from bench.store import Store
from bench.witness_checker import FORMAT, witnessed
from bench.work import Settings, build_attack, dataset, judged_model, set_aside
from certify.base import CERTIFIERS, Certifier
from certify.chain import array, chain, described, weights
from models.atomic import write_atomically
from models.base import Batch, Classifier, frozen
from models.data import Dataset
from models.errors import NotApplicable
from models.randomness import Randomness
from models.threat import ThreatModel
from models.threats import threat_named

NORMS = ("linf", "l2", "l1")

# Points that leave the ball by rounding are moved to this share of it, far below any attack's step.
INSIDE = 1 - 1e-8

CLEAN = "clean"

Points = Iterable[tuple[str, Batch, Tensor]]


def write_witness(
    path: Path, model: Classifier, sample: Batch, point: Tensor, threat: ThreatModel, by: str = ""
) -> None:
    """Writes the witness that one sample (n = 1) is broken at `point` (1, ...), which `by` found.

    The file, in the safetensors format, holds the layers' weights under the names of their own file, with
    its hash, the input, label, norm, eps and box, and the point in float64, moved inside where rounding
    left it outside. bench/witness_checker.py states what is to be checked, and is asked before anything is
    written. Raises ValueError with its reason where it refutes the point; NotApplicable, naming it, for a
    norm other than linf, l2 and l1 and for networks that are no such chain.
    """
    check_witnessed(model, threat)
    layers = chain(model.network, pools=True)
    own = weights(layers)
    tensors = {f"weights.{name}": part for name, part in own.items()}
    tensors["x"] = array(sample.x[0])
    tensors["point"] = _inside(tensors["x"].astype(np.float64), array(point[0].double()), threat)
    notes = {
        "format": FORMAT,
        "method": by,
        "model": model.name,
        "index": str(int(sample.index[0])),
        "norm": threat.norm,
        "eps": repr(float(threat.radius)),
        "box": json.dumps([threat.box.lower, threat.box.upper]),
        "label": str(int(sample.y[0])),
        "layers": json.dumps([described(*one) for one in layers]),
        "weights_sha256": hashlib.sha256(save(own)).hexdigest(),
    }
    witnessed(tensors, notes)
    write_atomically(path, save(tensors, notes))


def check_witnessed(model: Classifier, threat: ThreatModel) -> None:
    """Raises NotApplicable where there are no witness files for this model or threat."""
    if threat.norm not in NORMS or threat.eps is None:
        raise NotApplicable(f"witness files speak of linf, l2 and l1 and an eps, not of '{threat.norm}'")
    chain(model.network, pools=True)


def _inside(x: np.ndarray, point: np.ndarray, threat: ThreatModel) -> np.ndarray:
    """The point, or one on the way to x where it is not well within eps."""
    order = {"linf": np.inf, "l2": 2, "l1": 1}[threat.norm]
    away = float(np.linalg.norm((point - x).ravel(), order))
    if away <= threat.radius * INSIDE:
        return point
    nearer = x + (point - x) * (threat.radius * INSIDE / away)
    return np.clip(nearer, threat.box.lower, threat.box.upper)


def write_witnesses(
    folder: Path, model: Classifier, batch: Batch, result: Evaluation, judges: Judges, seed: int
) -> None:
    """Writes folder/image-INDEX.broken.safetensors for the broken samples of `batch`, and prints how many."""
    threat = threat_named(result.norm, result.eps, model.box)
    _write(folder, model, _broken(model, batch, result, judges, threat, seed), threat)


def _broken(
    model: Classifier, batch: Batch, result: Evaluation, judges: Judges, threat: ThreatModel, seed: int
) -> Iterator[tuple[str, Batch, Tensor]]:
    """The broken samples of an evaluation by what broke them first, which is run on them once more."""
    rows = result.outcomes
    first = rows[rows["success"].astype(bool)].drop_duplicates("index")
    known: dict[str, Attack | Certifier] = {**judges.certificates, **judges.attacks}
    for name, found in first.groupby("judge", sort=False):
        places = torch.tensor(found["index"].tolist(), device=batch.x.device)
        # An evaluation counts its samples from 0, whatever the data set calls them.
        part = Batch.of(batch.x, batch.y)[places]
        yield str(name), batch[places], found_again(known[str(name)], model, part, threat, Randomness(seed))
    wrong = misclassified(model, batch[: result.n])
    yield CLEAN, wrong, wrong.x


def write_run_witnesses(folder: Path, cell_ids: Sequence[str], store: Store, settings: Settings) -> None:
    """The same, under folder/MODEL-NORM-EPS, for every model, norm and eps of a run's judges.

    A counterexample that was found at any radius counts where it is near enough, as in the leaderboards.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in store.many(cell_ids):
        cell = record.cell
        if record.header.status == "done" and cell.threat.norm in NORMS:
            groups.setdefault((cell.data, cell.defended, cell.threat.norm), []).append(record)
    for (data, name, norm), records in groups.items():
        images = dataset(data, settings.data_root, settings.download)
        model = judged_model(name, data, settings)
        records.sort(key=lambda record: record.header.wall_seconds)
        found = {record.cell.threat.eps for record in records}
        for eps in sorted(eps for eps in found if eps is not None):
            place = folder / f"{slug(name)}-{norm}-{eps:g}"
            threat = ThreatModel(norm, eps, images.box)
            _write(place, model, _run_broken(model, records, images, threat, settings), threat)


def _run_broken(
    model: Classifier, records: list[Record], images: Dataset, threat: ThreatModel, settings: Settings
) -> Iterator[tuple[str, Batch, Tensor]]:
    """The samples that records show broken within a threat, each by the first of them, and once more."""
    taken: set[int] = set()
    wrong: set[int] = set()
    for record in records:
        cell, rows = record.cell, record.outcomes
        wrong.update(rows.loc[~rows["clean"].astype(bool), "index"].tolist())
        found = set(rows.loc[broken_at(rows, threat.radius), "index"].tolist()) - taken - wrong
        if not found:
            continue
        taken |= found
        batch = _named(images, found, settings)
        searched = threat_named(cell.threat.norm, cell.threat.eps, images.box)
        judge: Attack | Certifier
        if cell.judge.kind == "certificate":
            judge, aside = CERTIFIERS[cell.judge.name](**cell.judge.chosen), None
        else:
            judge = build_attack(cell, settings)
            aside = set_aside(judge, cell, images, settings)
        points = found_again(judge, model, batch, searched, Randomness(cell.random_seed), aside)
        yield cell.judge.label, batch, points
    if wrong:
        clean = _named(images, wrong, settings)
        yield CLEAN, clean, clean.x


def _named(images: Dataset, places: set[int], settings: Settings) -> Batch:
    return images.batch(torch.tensor(sorted(places), dtype=torch.int64)).to(settings.device)


def misclassified(model: Classifier, batch: Batch) -> Batch:
    """The samples on which the model errs as they are."""
    with frozen(model), torch.no_grad():
        right = torch.cat([model.right(part.x, part.y) for part in batch.split(256)])
    return batch[~right]


def found_again(
    judge: Attack | Certifier,
    model: Classifier,
    batch: Batch,
    threat: ThreatModel,
    randomness: Randomness,
    aside: Batch | None = None,
) -> Tensor:
    """The points (n, ...) at which a judge breaks samples, the clean ones elsewhere; outcomes hold none."""
    if isinstance(judge, Attack):
        return judge.run(model, batch, threat, randomness, aside).x_adv
    witness = judge.run(model, batch, threat, randomness).witness
    return batch.x if witness is None else witness


def _write(folder: Path, model: Classifier, broken: Points, threat: ThreatModel) -> None:
    """Writes the files, and prints by what the samples were broken, and which have none for what reason."""
    by: Counter[str] = Counter()
    missing: list[str] = []
    try:
        check_witnessed(model, threat)
    except NotApplicable as reason:
        print(f"{folder}: no witness files: {reason}")
        return
    for name, samples, points in broken:
        for i, one in enumerate(samples.split(1)):
            index = int(one.index)
            path = folder / f"image-{index}.broken.safetensors"
            try:
                write_witness(path, model, one, points[i : i + 1], threat, name)
            except ValueError as reason:
                missing.append(f"{index} ({reason})")
                continue
            by[name] += 1
    parts = ", ".join(f"{n} clean" if name == CLEAN else f"{n} by {name}" for name, n in by.items())
    print(f"{folder}: {by.total()} witness files{f' ({parts})' if parts else ''}")
    if missing:
        print(f"{len(missing)} broken images have no witness file: {', '.join(missing)}")
