"""One generic registry: duplicate names raise, unknown names suggest the nearest ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar

from models.errors import UserError

T = TypeVar("T")


def suggest(kind: str, name: str, known: list[str]) -> UserError:
    """The error for an unknown `name`: names the nearest known ones."""
    plain = {one.casefold(): one for one in reversed(known)}
    close = difflib.get_close_matches(name.casefold(), plain, n=3, cutoff=0.5)
    near, others = [plain[one] for one in close], ", ".join(known) or "none"
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {others}"
    return UserError(f"unknown {kind} '{name}': {hint}")


class Registry(Generic[T]):
    """Maps the names of one `kind` of component to the components themselves, in name order."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Registers `entry`; raises ValueError if the name is taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise suggest(self.kind, name, self.names())
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)
