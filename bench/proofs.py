"""One proof file per certified sample of an evaluation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bench.evaluation import Evaluation
from certify.proof import write_proof
from models.base import Batch, Classifier
from models.errors import NotApplicable
from models.threat import ThreatModel


def write_proofs(folder: Path, model: Classifier, batch: Batch, result: Evaluation) -> None:
    """Writes folder/image-INDEX.safetensors for the certified samples of `batch`, and prints how many.

    Samples that only branch and bound settles have no file, nor have networks that are no chain.
    """
    rows = result.outcomes
    places = sorted(set(rows.loc[rows["certified"].astype(bool), "index"])) if len(rows) else []
    methods: Counter[str] = Counter()
    for place in places:
        one, threat = batch[slice(place, place + 1)], ThreatModel(result.norm, result.eps, model.box)
        try:
            method = write_proof(folder / f"image-{int(one.index)}.safetensors", model, one, threat)
        except NotApplicable as reason:
            print(f"no proof files: {reason}")
            return
        methods[method or "none"] += 1
    missing = methods.pop("none", 0)
    by = ", ".join(f"{count} by {name}" for name, count in sorted(methods.items()))
    print(f"{folder}: {sum(methods.values())} proof files{f' ({by})' if by else ''}")
    if missing:
        print(f"{missing} certified images have no proof file: only branch and bound settles them")
