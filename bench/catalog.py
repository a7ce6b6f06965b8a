"""What is registered, as plain data: built once from the registries, then read without torch.

`load` keeps the result in the user's cache folder under a hash of the component files'
names, sizes and times, so that `list`, `table` and a finished `run` start fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from models.cost import Cost

ROOMS = ("models", "attacks", "certify", "defenses")


class Entry(BaseModel):
    """One registered component; at_input: a defence that leaves weights alone; family: models.families."""

    model_config = ConfigDict(frozen=True)

    name: str
    summary: str
    paper: str
    norms: tuple[str, ...] = ()
    minimal: bool = False
    access: str = ""
    cost: Cost = Cost.CHEAP
    wide_cost: Cost | None = None
    neurons: int = 0
    family: str = ""
    models: tuple[str, ...] = ()
    ensemble: bool = False
    fitted: bool = False
    at_input: bool = False
    sweeps: dict[str, tuple[str, ...]] = {}
    defaults: dict[str, Any] = {}
    refuses: dict[str, str] = {}


class Catalog(BaseModel):
    """Every registered component by kind and name; `refuses` of a defence maps models to reasons.

    operations are what certificates understand of a network, by PyTorch's names.
    """

    model_config = ConfigDict(frozen=True)

    models: dict[str, Entry]
    defenses: dict[str, Entry]
    attacks: dict[str, Entry]
    certificates: dict[str, Entry]
    data: dict[str, Entry]
    operations: dict[str, Entry] = {}


def load() -> Catalog:
    """The catalog of the installed suite."""
    cache = _cache_folder() / f"catalog-{fingerprint()}.json"
    try:
        return Catalog.model_validate_json(cache.read_bytes())
    except (OSError, ValidationError):
        catalog: Catalog = importlib.import_module("bench.registered").catalog()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(catalog.model_dump_json(), encoding="utf-8")
        partial.replace(cache)
    except OSError:
        pass
    return catalog


def plain(value: Any) -> Any:
    """`value` as JSON would hold it: dataclasses become dictionaries."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **plain(vars(value))}
    return json.loads(json.dumps(value, default=lambda other: plain(other)))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rhobust"


def fingerprint() -> str:
    """A digest of the names, sizes and times of the suite's files: what another version has otherwise."""
    root = Path(__file__).parent.parent
    lines = []
    for room in (*ROOMS, "bench"):
        for path in sorted((root / room).rglob("*.py")):
            stat = path.stat()
            lines.append(f"{path}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
