"""Analyses as plain data on disk: typed, with what made them, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.record import Provenance
from models.atomic import write_atomically

FOLDER = "analyses"


class Plain(BaseModel):
    """Data that is checked when it is read and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Crossing(Plain):
    """Where a ray leaves a decision region: the l2 distance in input units, and the class behind."""

    distance: float
    entered: int


class Plane(Plain):
    """One model's decisions on the plane: classes[row][column] at b, a in -reach..reach, upwards.

    ahead and behind: the nearest other region along +u and -u, None where there is none up to `far`.
    """

    model: str
    predicted: int
    classes: list[list[int]]
    ahead: Crossing | None
    behind: Crossing | None


class Regions(Plain):
    """Decisions of several models on the same plane x + a u + b v, |a|, |b| <= reach, in l2.

    far: where the walks along +-u end; cosine: u.v as computed.
    """

    kind: Literal["regions"] = "regions"
    index: int
    label: int
    reach: float
    far: float
    cosine: float
    planes: list[Plane]


class Surface(Plain):
    """One model's loss[angle][down][right] over the grid of poses.

    worst: the place of the greatest loss; chosen: the place that the grid attack settles on, which stops
    early where it wins; broken: it wins; maxima: the number of local maxima.
    """

    model: str
    loss: list[list[list[float]]]
    worst: tuple[int, int, int]
    chosen: tuple[int, int, int]
    broken: bool
    maxima: int


class Landscape(Plain):
    """The grid attack's loss on an image: angles in degrees, down and right in pixels."""

    kind: Literal["landscape"] = "landscape"
    index: int
    label: int
    angles: list[float]
    down: list[float]
    right: list[float]
    surfaces: list[Surface]


class Unit(Plain):
    """A hidden unit: mean |shift| and mean shift of its peak activation, and the class it tells best."""

    unit: int
    shift: float
    signed: float
    label: int
    auc: float


class Dissection(Plain):
    """The units of one model's layer, most shifted first, and what removing the first k of them does.

    removed: the values of k. success: share of the broken samples that stay misclassified; clean: accuracy
    on the clean images. The random ones are means over the draws. confusion[label][class] counts what the
    broken samples became.
    """

    model: str
    layer: str
    units: int
    right: int
    broken: int
    top: list[Unit]
    removed: list[int]
    success: list[float]
    success_random: list[float]
    clean: list[float]
    clean_random: list[float]
    confusion: list[list[int]]


class Units(Plain):
    """Which hidden units an attack exploits, model by model, on n images."""

    kind: Literal["units"] = "units"
    attack: str
    norm: str
    eps: float
    n: int
    draws: int
    dissections: list[Dissection]


class Curve(Plain):
    """One model's accuracy at each eps, and the share of its weights that are zero."""

    model: str
    zeros: float
    accuracy: list[float]


class Sparsity(Plain):
    """Accuracy against eps under one attack, model by model, on the same n images."""

    kind: Literal["sparsity"] = "sparsity"
    attack: str
    norm: str
    n: int
    eps: list[float]
    curves: list[Curve]


class Rung(Plain):
    """One question of an audit, whether the model passed, and what was measured."""

    name: str
    passed: bool
    detail: str


class Audited(Plain):
    """An audit of one model on n images: clean, under pgd alone (naive), under everything (attacked).

    reliable: no weaker judge beat the worst case, and no answer depended on earlier ones. seconds: what it
    took.
    """

    kind: Literal["audit"] = "audit"
    norm: str
    eps: float
    n: int
    clean: float
    naive: float
    attacked: float
    rungs: list[Rung]
    reliable: bool
    seconds: float

    @property
    def failed(self) -> list[Rung]:
        """The rungs that the model did not pass."""
        return [rung for rung in self.rungs if not rung.passed]


Result = Annotated[Regions | Landscape | Units | Sparsity | Audited, Field(discriminator="kind")]


class Analysis(Plain):
    """A computed analysis with everything that made it; weights are hashes by model name."""

    schema_version: Literal[1] = 1
    data: str
    models: list[str]
    weights: dict[str, str]
    settings: dict[str, Any]
    seed: int
    command: str
    provenance: Provenance
    result: Result

    @property
    def name(self) -> str:
        """KIND-HASH: the same question to the same weights and data has the same name."""
        parts = (self.schema_version, self.data, self.provenance.data_sha256)
        asked = (*parts, self.models, sorted(self.weights.items()), self.settings, self.seed)
        digest = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return f"{self.result.kind}-{digest[:12]}"


def save(folder: Path, analysis: Analysis) -> Path:
    """Writes FOLDER/analyses/KIND-HASH.json, whole or not at all, in place of an older answer."""
    path = folder / FOLDER / f"{analysis.name}.json"
    write_atomically(path, (analysis.model_dump_json() + "\n").encode())
    return path


def read(folders: Iterable[Path]) -> tuple[list[Analysis], list[str]]:
    """The analyses beside the runs, by kind and name, and a line for each file that cannot be read."""
    found: dict[str, Analysis] = {}
    lost: list[str] = []
    for folder in folders:
        for path in sorted((folder / FOLDER).glob("*.json")):
            try:
                analysis = Analysis.model_validate_json(path.read_bytes())
            except (ValidationError, OSError):
                lost.append(f"{path.name} is damaged or of another version: delete it and analyse again")
            else:
                found.setdefault(analysis.name, analysis)
    return [found[name] for name in sorted(found)], lost
