"""What a matrix sets: every value of its component's kind, said with file and line before anything runs."""

from __future__ import annotations

from typing import Any

from bench.catalog import Catalog
from bench.naming import read_defenses
from bench.spec import MatrixSpec, place_of
from models.errors import UserError
from models.registry import suggest


def check_parameters(spec: MatrixSpec, catalog: Catalog, matrix: str) -> None:
    """Raises UserError that names file, component and parameter for a value that its component cannot take.

    `matrix` is what `spec` was read from. Defences are judged by what stands in their parentheses; unknown
    components are left to the plan, which suggests others.
    """
    known = catalog.attacks | catalog.certificates
    for name, chosen in spec.parameters.items():
        place, defaults = (
            place_of(matrix, f"parameters.{name}]"),
            known[name].defaults if name in known else {},
        )
        for key, value in chosen.items() if name in known else ():
            if key not in defaults:
                raise UserError(f"{place}: {suggest(f'parameter of {name}', key, sorted(defaults))}")
            if not _fits(value, defaults[key]):
                raise UserError(f"{place}: parameters.{name}.{key} is {_kind(defaults[key])}, not {value!r}")
    for field, texts in (("defenses", spec.defenses), ("models", spec.models), ("sources", spec.sources)):
        for text in texts:
            defense = text if field == "defenses" else text.partition("+")[2]
            try:
                read_defenses((defense,) if defense and ":" not in text else (), catalog)
            except UserError as reason:
                raise UserError(f"{place_of(matrix, field)}: {field}: {reason}") from None


def _fits(value: Any, default: Any) -> bool:
    """Whether a value from TOML is of its default's kind: an attack inside another one is written as text."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        kinds = int if isinstance(default, int) else int | float
        return isinstance(value, kinds) and not isinstance(value, bool)
    if isinstance(default, list):
        entries = [value] if isinstance(value, str) else value
        return isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)
    return isinstance(value, str)


def _kind(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int | float):
        return "a whole number" if isinstance(default, int) else "a number"
    if isinstance(default, list):
        return "a list of names"
    return 'an attack, like "pgd(steps=10)"' if isinstance(default, dict) else "a text"
