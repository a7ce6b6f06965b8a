"""Runs one cell: the one place where models, attacks, certificates and defences meet."""

from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from attacks.base import ATTACKS, Attack
from bench.cell import Cell
from bench.convergence import convergence
from bench.gallery import gallery, held_out
from bench.record import Header, Provenance, Record, empty_outcomes
from bench.weights import is_own
from certify.base import CERTIFIERS
from defenses.zoo import ModelName, load, suite_version
from models.atomic import write_atomically
from models.base import Batch, Classifier
from models.data import Dataset, load_data
from models.discover import import_modules
from models.errors import NotApplicable, UserError
from models.naming import read_terms
from models.norms import BALLS
from models.probes import signs
from models.randomness import Randomness
from models.sources.opening import IMAGES as PROBED
from models.sources.opening import Opened, open_model
from models.threat import ThreatModel, vector_norm
from models.threats import threat_named

for room in ("attacks", "certify"):
    import_modules(room)

ASIDE = 300
TRACED = 1000
"""On more images than this no losses are kept while an attack runs: they would be gigabytes."""


@dataclass(frozen=True)
class Settings:
    """What may change how a cell runs but never its outcome (where data lies, device, folders)."""

    data_root: Path | None = None
    download: bool = False
    device: str = "cpu"
    out: Path = Path("results")


@lru_cache(maxsize=4)
def dataset(name: str, root: Path | None, download: bool) -> Dataset:
    """The data set, read once per process."""
    return load_data(name, root, download)


@lru_cache(maxsize=32)
def zoo_member(name: str, settings: Settings) -> Classifier:
    """The trained model, read once per process."""
    return load(
        ModelName.parse(name),
        device=settings.device,
        root=settings.data_root,
        download=settings.download,
    )


@lru_cache(maxsize=8)
def own_model(name: str, data: str, settings: Settings) -> Opened:
    """The user's own model, tried out on images of the data set once per process."""
    images = dataset(data, settings.data_root, settings.download)
    opened = open_model(name, images.batch(images.panel(PROBED)), images.num_classes)
    return Opened(opened.classifier.to(settings.device), opened.notes)


def judged_model(name: str, data: str, settings: Settings) -> Classifier:
    """The zoo's model, or the user's own on a data set, read once per process."""
    return own_model(name, data, settings).classifier if is_own(name) else zoo_member(name, settings)


@lru_cache(maxsize=64)
def suspicious(model: Classifier, data: str, norm: str, eps: float, settings: Settings) -> dict[str, str]:
    """The model's signs on the data set's first images under a ball of this norm and radius."""
    images = dataset(data, settings.data_root, settings.download)
    batch = images.batch(images.panel(PROBED)).to(settings.device)
    return {sign.word: sign.detail for sign in signs(model, batch, ThreatModel(norm, eps, images.box))}


def run_cell(cell: Cell, settings: Settings) -> Record:
    """The cell's record: done with outcomes, skipped where the judge does not apply, or failed."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    try:
        data = dataset(cell.data, settings.data_root, settings.download)
        proof = provenance(settings.device, data, started)
        frame, extra = _judge(cell, data, settings)
    except NotApplicable as refusal:
        return Record(Header(cell=cell, status="skipped", reason=str(refusal)), empty_outcomes())
    except UserError as mistake:
        return Record(Header(cell=cell, status="failed", reason=str(mistake)), empty_outcomes())
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return Record(Header(cell=cell, status="failed", reason=text), empty_outcomes())
    seconds = time.perf_counter() - clock
    header = Header(cell=cell, status="done", wall_seconds=seconds, provenance=proof, **extra)
    return Record(header, frame)


def _judge(cell: Cell, data: Dataset, settings: Settings) -> tuple[pd.DataFrame, dict[str, Any]]:
    model = judged_model(cell.defended, cell.data, settings)
    batch = data.batch(data.panel(None)[: cell.images]).to(settings.device)
    threat = threat_named(cell.threat.norm, cell.threat.eps, data.box)
    if cell.judge.kind == "certificate":
        return _certify(cell, model, batch, threat, Randomness(cell.random_seed))
    attack = build_attack(cell, settings)
    aside = set_aside(attack, cell, data, settings)
    frame, more = _attack(cell, attack, model, (batch, aside), threat, settings)
    if cell.threat.norm in BALLS and cell.threat.eps:
        more["signs"] = suspicious(model, cell.data, cell.threat.norm, cell.threat.eps, settings)
    return frame, more


def _attack(
    cell: Cell,
    attack: Attack,
    model: Classifier,
    images: tuple[Batch, Batch | None],
    threat: ThreatModel,
    settings: Settings,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of an attack on images[0], fitted on images[1], and what its header says of its course."""
    (batch, aside), randomness = images, Randomness(cell.random_seed)
    result = attack.run(model, batch, threat, randomness, aside, history=len(batch) <= TRACED)
    views = held_out(model, batch, result, attack, randomness)
    kept = {**result.artifacts, **gallery(model, batch, result), **views}
    if kept:
        _keep(cell, kept, settings)
    frame = _frame(
        batch,
        threat,
        clean=result.clean,
        success=result.success,
        distance=result.distance,
        rmsd=torch.where(result.success, _rmsd(batch.x, result.x_adv), torch.nan),
        margin=result.margin,
        legal=result.legal,
        forward=result.forward,
        backward=result.backward,
        zero_gradient=result.zero_gradient,
    )
    return frame, {
        "shared_forward": result.shared_forward,
        "shared_backward": result.shared_backward,
        "convergence": convergence(result),
    }


def set_aside(attack: Attack, cell: Cell, data: Dataset, settings: Settings) -> Batch | None:
    """The panel's last images, on which an attack is fitted that asks for some; they are never scored."""
    if not attack.fitted:
        return None
    panel = data.panel(None)
    if len(panel) < cell.images + ASIDE:
        raise UserError(
            f"'{attack.name}' needs {ASIDE} images beside the {cell.images} scored: lower --limit"
        )
    return data.batch(panel[-ASIDE:]).to(settings.device)


def build_attack(cell: Cell, settings: Settings) -> Attack:
    """The attack of a cell, with the classifiers it names loaded."""
    cls = ATTACKS[cell.judge.name]
    chosen = dict(cell.judge.chosen)
    for name in cls.models:
        wanted = chosen[name]
        chosen[name] = (
            tuple(zoo_member(one, settings) for one in wanted)
            if cls.ensemble
            else zoo_member(wanted, settings)
        )
    if isinstance(chosen.get("attack"), str):
        chosen["attack"] = named_attack(chosen["attack"])
    return cls(**chosen)


def named_attack(text: str) -> Attack:
    """The attack written as "pgd" or "pgd(restarts=1)"; raises UserError for unknown names or parameters."""
    (term,) = read_terms(text)
    cls = ATTACKS[term.name]
    return cls(**dict(term.settled("attack", asdict(cls())).chosen))


def _certify(
    cell: Cell, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
) -> tuple[pd.DataFrame, dict[str, Any]]:
    certifier = CERTIFIERS[cell.judge.name](**cell.judge.chosen)
    certificate = certifier.run(model, batch, threat, randomness)
    with torch.no_grad():
        clean = torch.cat([model.right(part.x, part.y) for part in batch.split(256)])
    found = {"certified": certificate.certified, "lower": certificate.margin}
    if certificate.broken is not None and certificate.distance is not None:
        found |= {
            "success": certificate.broken | ~clean,
            "distance": torch.where(clean, certificate.distance, 0.0),
        }
    frame = _frame(batch, threat, clean=clean, **found)
    return frame, {"confidence": certificate.confidence}


def _frame(batch: Batch, threat: ThreatModel, **columns: Tensor) -> pd.DataFrame:
    n = len(batch)
    absent = {"success": False, "legal": True, "certified": False, "forward": 0, "backward": 0}
    absent["zero_gradient"] = False
    missing = dict.fromkeys(("distance", "input_norm", "rmsd", "margin", "lower"), torch.nan)
    frame = empty_outcomes()
    values: dict[str, Any] = {
        "index": batch.index,
        "label": batch.y,
        **columns,
    }
    if threat.norm in BALLS:
        values["input_norm"] = vector_norm(batch.x.double(), threat.norm)
    whole = {name: [value] * n for name, value in {**absent, **missing}.items() if name not in values}
    whole |= {name: tensor.cpu().numpy() for name, tensor in values.items()}
    return pd.DataFrame(whole)[list(frame.columns)].astype(frame.dtypes.to_dict())


def _rmsd(x: Tensor, x_adv: Tensor) -> Tensor:
    return (x_adv.double() - x.double()).square().flatten(1).mean(1).sqrt()


def _keep(cell: Cell, artifacts: dict[str, Tensor], settings: Settings) -> None:
    content = safetensors_bytes({name: tensor.cpu().contiguous() for name, tensor in artifacts.items()})
    write_atomically(settings.out / "artifacts" / f"{cell.id}.safetensors", content)


def provenance(device: str, data: Dataset, started: str) -> Provenance:
    """What made a record."""
    commit, dirty = _commit()
    return Provenance(
        version=suite_version(),
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        torch=torch.__version__,
        platform=platform.platform(),
        device=device,
        data_sha256=data.sha256,
        started=started,
    )


@lru_cache(maxsize=1)
def _commit() -> tuple[str, bool]:
    """The commit of the checkout that this file lies in and whether it was changed; ("", False) elsewhere."""
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():
        return "", False
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        state = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "", False
    return head.stdout.strip(), bool(state.stdout.strip())


def pick_device(wanted: str) -> str:
    """ "cpu" or "cuda"; raises UserError where cuda is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available, use --device cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def prepare(what: tuple[str, str | None], settings: Settings) -> None:
    """Checks that the data set can be read and, where a zoo name is given, that its weights are there."""
    data, name = what
    dataset(data, settings.data_root, settings.download)
    if name is not None:
        zoo_member(name, settings)


def try_out(what: tuple[str, str], settings: Settings) -> tuple[str, ...]:
    """What a user should know of an own model on a data set; raises UserError where it cannot judge it."""
    data, name = what
    opened = own_model(name, data, settings)
    found = suspicious(opened.classifier, data, "linf", 0.0, settings)
    return (*opened.notes, *(f"'{name}', {word}: {detail}" for word, detail in found.items()))
