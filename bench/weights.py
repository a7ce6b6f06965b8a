"""The hash of a zoo member's weights, read from its model card; needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

from models.errors import UserError

FOLDER = Path(__file__).parent.parent / "models" / "weights"


def card_hash(name: str) -> str:
    """The first 16 hexadecimal digits of the weights' hash, or "untrained" where there are none."""
    card = FOLDER / f"{name}.json"
    if not (card.exists() and card.with_suffix(".safetensors").exists()):
        return "untrained"
    try:
        return str(json.loads(card.read_bytes())["weights_sha256"])[:16]
    except (ValueError, KeyError):
        raise UserError(
            f"model card {card} is damaged: delete it and run: python -m bench train {name}"
        ) from None
