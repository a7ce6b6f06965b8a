"""Finds components by importing every module of a package: a new file is in by being there."""

from __future__ import annotations

import importlib
import pkgutil


def import_modules(package: str) -> None:
    """Imports each module directly inside `package`, so that its registries are complete."""
    place = importlib.import_module(package)
    for found in pkgutil.iter_modules(place.__path__):
        if not found.name.startswith("_"):
            importlib.import_module(f"{package}.{found.name}")
