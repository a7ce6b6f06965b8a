"""The roof: plans, runs, stores and tabulates benchmarks of attacks and certificates."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    """Loads `evaluate` when it is first asked for: the command line must start without torch."""
    if name == "evaluate":
        return importlib.import_module("bench.evaluation").evaluate
    raise AttributeError(f"module 'bench' has no attribute '{name}'")
