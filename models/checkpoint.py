"""Weights on disk: a safetensors file and, beside it, a model card in JSON that holds its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.atomic import stem, write_atomically
from models.errors import UserError

SHIPPED = Path(__file__).parent / "weights"


class ModelCard(BaseModel):
    """Where weights come from: recipe, seed, data, excluded images, measured accuracies, cost, content hash.

    origin_sha256 of the weights that training went on from, None where it started from nothing;
    seconds of training on `machine`; None for weights that are older than the measurement.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    architecture: str
    defense: dict[str, Any]
    recipe: dict[str, Any]
    origin_sha256: str | None = None
    seed: int
    data: str
    data_sha256: str
    excluded: str
    excluded_images: int
    accuracies: dict[str, float]
    version: str
    torch: str
    seconds: float | None = None
    machine: str | None = None
    weights_sha256: str


def places(name: str, folder: Path = SHIPPED) -> tuple[Path, Path]:
    """The paths of the weights and of the card of `name`."""
    return folder / f"{stem(name)}.safetensors", folder / f"{stem(name)}.json"


def save_weights(
    name: str, state: dict[str, Tensor], card: dict[str, Any], folder: Path = SHIPPED
) -> ModelCard:
    """Stores weights and card; the card is written last, so that weights without one count as absent."""
    weights, described = places(name, folder)
    content = save({key: value.detach().cpu().contiguous() for key, value in state.items()})
    full = ModelCard(**card, weights_sha256=hashlib.sha256(content).hexdigest())
    write_atomically(weights, content)
    write_atomically(described, (full.model_dump_json(indent=2) + "\n").encode())
    return full


def read_card(name: str, folder: Path = SHIPPED) -> ModelCard | None:
    """The card of `name`, or None where it is absent; raises UserError where it cannot be read."""
    weights, described = places(name, folder)
    if not (weights.exists() and described.exists()):
        return None
    try:
        return ModelCard.model_validate_json(described.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"model card {described} is damaged ({error.error_count()} errors): delete it"
        ) from None


def load_weights(name: str, folder: Path = SHIPPED) -> dict[str, Tensor]:
    """The weights of `name`; raises UserError where they are damaged or not those of the card."""
    weights, _ = places(name, folder)
    card = read_card(name, folder)
    content = weights.read_bytes()
    fix = f"delete it and run: python -m bench train {name}"
    if card is not None and hashlib.sha256(content).hexdigest() != card.weights_sha256:
        raise UserError(f"weights file {weights} is truncated or changed (not the card's hash): {fix}")
    try:
        return load(content)
    except SafetensorError:
        raise UserError(f"weights file {weights} cannot be read: {fix}") from None


def training_lock(name: str, folder: Path) -> FileLock:
    """The lock that whoever trains `name` in `folder` holds: two would write one checkpoint.

    Who holds it may take it again, to wait for another process and train in one go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f".{stem(name)}.lock", is_singleton=True)


def claimed(name: str, folder: Path) -> AcquireReturnProxy:
    """The training lock, held until it is left; raises UserError where another process holds it."""
    try:
        return training_lock(name, folder).acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{name} is being trained in {folder} by another process: wait for it, or give another --out"
        ) from None
