"""The hash of a model's weights: a zoo member's from its card, a user's own from what it is built of."""

from __future__ import annotations

import importlib
import json
from functools import lru_cache
from pathlib import Path

from models.atomic import stem
from models.errors import UserError

FOLDER = Path(__file__).parent.parent / "models" / "weights"


def is_own(name: str) -> bool:
    """Whether a model or data set is the user's own, SOURCE:PLACE; registered names have no colon."""
    return ":" in name


@lru_cache(maxsize=64)
def own_hash(name: str) -> str:
    """The fingerprint of a user's own model; builds it, which the zoo's hashes do without torch."""
    importlib.import_module("models.discover").import_modules("models.sources")
    return str(importlib.import_module("models.sources.base").ModelLine.parse(name).fingerprint())


@lru_cache(maxsize=8)
def with_hash(data: str) -> str:
    """The name of a user's own data set with the hash of its content, so that other content is other data."""
    dataset = importlib.import_module("models.data").load_data(data)
    return f"{dataset.name}@{dataset.sha256[:16]}"


def card_hash(name: str) -> str:
    """The first 16 hexadecimal digits of the weights' hash, or "untrained" where there are none."""
    if is_own(name):
        return own_hash(name)
    card = FOLDER / f"{stem(name)}.json"
    if not (card.exists() and card.with_suffix(".safetensors").exists()):
        return "untrained"
    try:
        return str(json.loads(card.read_bytes())["weights_sha256"])[:16]
    except (ValueError, KeyError):
        raise UserError(
            f"model card {card} is damaged: delete it and run: python -m bench train {name}"
        ) from None
