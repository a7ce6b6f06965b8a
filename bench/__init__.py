"""The roof: plans, runs, stores and tabulates benchmarks of attacks and certificates."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["audit", "evaluate"]

PLACES = {"audit": "bench.auditor", "evaluate": "bench.evaluation"}


def __getattr__(name: str) -> Any:
    """Loads `evaluate` or `audit` when it is first asked for: the command line must start without torch."""
    if name in PLACES:
        return getattr(importlib.import_module(PLACES[name]), name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")
