"""What every hyper-parameter of a defence or a detector must be, whoever wrote it."""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from models.errors import UserError

# Parameters that say how often something is done: none at all would leave a network as it was.
TIMES = ("epochs", "steps")


def check_parameters(component: Any) -> None:
    """Raises UserError where a value of a frozen dataclass is not of its default's kind.

    Numbers are finite, whole where the default is, and from 0 up unless the default is below; TIMES from 1
    up. Of other kinds nothing is known.
    """
    for field in fields(component):
        value, default = getattr(component, field.name), field.default
        if not _fits(field.name, value, default):
            wanted = _wanted(field.name, default)
            raise UserError(f"{component.name} needs {field.name} to be {wanted}, not {value!r}")


def _wanted(name: str, default: Any) -> str:
    if isinstance(default, bool):
        return "True or False"
    if isinstance(default, str):
        return "a text"
    number = f"a {'whole ' * isinstance(default, int)}number"
    return f"{number} from {_least(name, default)} up" if default >= 0 else number


def _fits(name: str, value: Any, default: Any) -> bool:
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    if not isinstance(default, int | float):
        return True
    if isinstance(value, bool) or not isinstance(value, Integral if isinstance(default, int) else Real):
        return False
    return math.isfinite(value) and float(value) >= _least(name, default)


def _least(name: str, default: float) -> float:
    """The least value of a number: below its default's sign nothing is known to make sense."""
    return int(name in TIMES) if default >= 0 else -math.inf
