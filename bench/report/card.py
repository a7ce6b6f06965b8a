"""The model card of a zoo member, as it ships beside its weights."""

from __future__ import annotations

import json
from typing import Any

from bench.report.subject import Subject
from bench.weights import FOLDER, is_own


def card(subject: Subject) -> tuple[list[tuple[str, str]], str]:
    """(name, value) lines of the card, and a sentence on whether it is of the weights that were judged."""
    judged = subject.records[0].cell.weights.partition("<")[0]
    if is_own(subject.model):
        return [], "This model is the user's own: it has no card."
    path = FOLDER / f"{subject.defended}.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return [], "This installation has no card of this model."
    lines = _lines(found, "")
    if str(found.get("weights_sha256", ""))[:16] == judged:
        return lines, "The card of the weights that were judged."
    return lines, f"The card of this installation, whose weights are not those that were judged ({judged})."


def _lines(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [line for key, inner in value.items() for line in _lines(inner, f"{name} {key}".strip())]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return [(name.replace("_", " "), text)]
