"""One proof file per certified sample, of an evaluation or of a finished matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.evaluation import Evaluation
from bench.report.grid import slug
from bench.store import Store
from bench.work import Settings, dataset, judged_model
from certify.proof import write_proof
from models.base import Batch, Classifier
from models.errors import NotApplicable
from models.threat import ThreatModel
from models.threats import threat_named


def write_proofs(folder: Path, model: Classifier, batch: Batch, result: Evaluation) -> None:
    """Writes folder/image-INDEX.safetensors for the certified samples of `batch`, and prints how many."""
    rows = result.outcomes
    places = sorted(set(rows.loc[rows["certified"].astype(bool), "index"])) if len(rows) else []
    threat = threat_named(result.norm, result.eps, model.box)
    _write(folder, model, batch[torch.tensor(places, dtype=torch.int64)], threat)


def write_run_proofs(folder: Path, cell_ids: Sequence[str], store: Store, settings: Settings) -> None:
    """The same, under folder/MODEL-linf-EPS, for every model and linf threat of a run's certificates."""
    certified: dict[tuple[str, str, float], set[int]] = {}
    for record in store.many(cell_ids):
        cell, rows = record.header.cell, record.outcomes
        if cell.judge.kind == "certificate" and cell.threat.norm == "linf" and cell.threat.eps is not None:
            found = certified.setdefault((cell.data, cell.defended, cell.threat.eps), set())
            found.update(rows.loc[rows["certified"].astype(bool), "index"].tolist())
    for (data, name, eps), indices in certified.items():
        images = dataset(data, settings.data_root, settings.download)
        model = judged_model(name, data, settings)
        place = folder / f"{slug(name)}-linf-{eps:g}"
        batch = images.batch(torch.tensor(sorted(indices), dtype=torch.int64)).to(settings.device)
        _write(place, model, batch, ThreatModel("linf", eps, images.box))


def _write(folder: Path, model: Classifier, certified: Batch, threat: ThreatModel) -> None:
    """Proves the samples once more, and prints by which methods.

    Samples that only more than branch and bound settles have no file, nor have networks that are no chain.
    """
    methods: Counter[str] = Counter()
    for one in certified.split(1):
        try:
            method = write_proof(folder / f"image-{int(one.index)}.safetensors", model, one, threat)
        except NotApplicable as reason:
            print(f"{folder}: no proof files: {reason}")
            return
        methods[method or "none"] += 1
    missing = methods.pop("none", 0)
    by = ", ".join(f"{count} by {name}" for name, count in sorted(methods.items()))
    print(f"{folder}: {sum(methods.values())} proof files{f' ({by})' if by else ''}")
    if missing:
        print(f"{missing} certified images have no proof file: their proof takes more than branch and bound")
