"""`detect`: how well a detector tells attacked images from clean ones, and how often it is evaded."""

from __future__ import annotations

from pathlib import Path

from bench.commands.evaluate import open_classifier
from bench.detection import Detection, detect
from bench.render import sheet, show, wide_console
from bench.stats import wilson
from bench.tables import Table
from bench.work import pick_device
from defenses.detect.detector import DETECTORS, Detector
from models.atomic import check_writable, write_atomically
from models.data import load_data
from models.discover import import_modules
from models.eps import parse_eps
from models.errors import UserError
from models.naming import read_terms
from models.norms import described
from models.threats import threat_named

import_modules("defenses.detect")

FITTED, ASIDE = 2000, 1000


def read_detector(text: str) -> Detector:
    """The detector of a line like "pca-tail(components=50)"; raises UserError for unknown names."""
    terms = read_terms(text)
    if len(terms) != 1:
        raise UserError(f"'{text}': detectors do not compose: name one")
    cls = DETECTORS[terms[0].name]
    return cls(**dict(terms[0].settled("detector", cls().parameters()).chosen))


def execute(
    model: str,
    detector: str,
    data: str,
    norm: str,
    eps: str,
    limit: int,
    rate: float,
    roc: Path | None,
    root: Path | None,
    download: bool,
    device: str,
    seed: int,
) -> int:
    """Prints the report; returns 1 where clean images are flagged more often than was asked for."""
    watch = read_detector(detector)
    if limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    dataset = load_data(data, root, download)
    panel = dataset.panel(None)
    rest = panel[limit:]
    parts = (panel[:limit], rest[: len(rest) * 2 // 3][:FITTED], rest[len(rest) * 2 // 3 :][:ASIDE])
    if not all(map(len, parts)):
        raise UserError(
            f"{dataset.name} has {len(dataset)} images, none to fit beside {limit}: lower --limit"
        )
    batch, clean, aside = (dataset.batch(part) for part in parts)
    classifier = open_classifier(model, batch, dataset, root, download).to(pick_device(device))
    threat = threat_named(norm, parse_eps(eps), dataset.box)
    if roc is not None:
        check_writable(roc.parent)
    batch, clean, aside = (part.to(classifier.device) for part in (batch, clean, aside))
    found = detect(classifier, watch, batch, clean, aside, threat, false_positive_rate=rate, seed=seed)
    _print(found, f"{detector} on {model} at {described(norm, float(threat.radius))}")
    if roc is not None:
        curves = [part.roc.assign(adversary=name) for name, part in found.separations.items()]
        lines = [curve.to_csv(index=False, header=not place) for place, curve in enumerate(curves)]
        write_atomically(roc, "".join(lines).encode())
    return 0 if found.honest else 1


def _print(found: Detection, what: str) -> None:
    console = wide_console()
    caption = (
        f"{what}: evading = misclassified and not flagged, of the n images that were right (Wilson 95 %); "
        "TPR: misclassified points flagged, FPR: clean images flagged, at the best threshold on these images"
    )
    shares = ("misclassified", "evading", "flagged", "TPR at 5 % FPR")
    ends = {"evading": ("evading_low", "evading_high")}
    rows = found.rows.rename(columns={"tpr_at_5_fpr": "TPR at 5 % FPR"})
    show(sheet(Table("detect", caption, rows, shares, ends)), console)
    low, high = wilson(found.false_positives, found.n_clean)
    lines = [
        f"clean images flagged: {found.false_positives} of {found.n_clean}, "
        f"{100 * found.false_positives / found.n_clean:.1f} % [{100 * low:.1f}, {100 * high:.1f}], "
        f"{100 * found.asked_rate:g} % were asked for, at the threshold {found.threshold:.4g}"
    ]
    for name, part in found.separations.items():
        (tn, fp), (fn, tp) = part.confusion.tolist()
        lines.append(f"{name}: {tp} flagged rightly, {fp} wrongly; {tn} passed rightly, {fn} wrongly")
    if not found.honest:
        lines.append("UNRELIABLE: more clean images are flagged than the threshold was set for")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
