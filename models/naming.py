"""Zoo names: a network and the defences around it, `lenet+adversarial-pgd(eps=0.2)+sparsify(keep=0.03)`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.eps import parse_eps
from models.errors import UserError
from models.registry import suggest

# Between names in a parameter: a comma ends the parameter, a plus belongs to a zoo name.
MARK = "&"

TERM = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\((.*)\))?\s*")


@dataclass(frozen=True)
class Term:
    """One name with the parameters that were chosen for it, sorted by key."""

    name: str
    chosen: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        if not self.chosen:
            return self.name
        return f"{self.name}({','.join(f'{key}={value}' for key, value in self.chosen)})"

    def settled(self, kind: str, defaults: Mapping[str, Any]) -> Term:
        """The same with every value as its default's type, and without those that equal their default.

        Raises UserError for a parameter that `defaults` lacks, or a value of another type.
        """
        found = {}
        for key, value in self.chosen:
            if key not in defaults:
                raise suggest(f"parameter of {kind} {self.name}", key, sorted(defaults))
            typed = _typed(f"{self.name}({key}=...)", value, defaults[key])
            if typed != defaults[key]:
                found[key] = typed
        return Term(self.name, tuple(sorted(found.items())))


def read_names(text: str) -> tuple[str, ...]:
    """The zoo names in "lenet & conv-small+interval(eps=0.3)"; a name given twice counts once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(MARK) if part.strip()))


def read_terms(text: str) -> tuple[Term, ...]:
    """The terms of a zoo name, in order; raises UserError where it cannot be read."""
    return tuple(_term(part, text) for part in _split(text, "+"))


def _split(text: str, mark: str) -> list[str]:
    """`text` cut at every `mark` that stands outside parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if letter == mark and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise UserError(f"'{text}': a parenthesis is missing: write NAME(KEY=VALUE,KEY=VALUE)")
    return parts


def _term(part: str, text: str) -> Term:
    match = TERM.fullmatch(part)
    if match is None:
        raise UserError(f"'{text}': cannot read '{part}': write NAME, or NAME(KEY=VALUE,...)")
    chosen: dict[str, Any] = {}
    for pair in _split(match[2], ",") if match[2] and match[2].strip() else []:
        key, equals, value = (piece.strip() for piece in pair.partition("="))
        if not equals or not key or not value:
            raise UserError(f"'{text}': cannot read '{pair}': write KEY=VALUE")
        if key in chosen:
            raise UserError(f"'{text}': '{key}' is given twice")
        chosen[key] = value
    return Term(match[1], tuple(sorted(chosen.items())))


def _typed(what: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str):
        value = str(value)
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise UserError(f"{what} is true or false, not '{value}'")
        return value.lower() == "true"
    if isinstance(default, str):
        return value
    try:
        return int(value) if isinstance(default, int) else float(parse_eps(value) or 0.0)
    except (ValueError, UserError):
        kind = "a whole number" if isinstance(default, int) else "a number from 0 up"
        raise UserError(f"{what} is {kind}, not '{value}'") from None
