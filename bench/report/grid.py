"""Tables of a page: cells that know their number, their text and where they lead."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pandas as pd

from bench.tables import Table

Row = dict[Any, Any]
"""A row of a frame, by column."""


@dataclass(frozen=True)
class Bar:
    """A bracket as a bar: fractions in [0, 1]."""

    certified: float
    attacked: float
    clean: float


@dataclass(frozen=True)
class Picture:
    """One image file of the site: its place, its bytes, what it shows, and the words beneath it."""

    path: str
    content: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell. value: what it sorts by, kept in full; text: what is read; href: a place in the site.

    note: small text beneath; marks: words with their meaning; anchor: the row's name, in its first cell;
    image: a picture before the text.
    """

    value: Any
    text: str
    href: str = ""
    note: str = ""
    bar: Bar | None = None
    marks: tuple[tuple[str, str], ...] = ()
    anchor: str = ""
    image: Picture | None = None

    @property
    def raw(self) -> str:
        """The value as the page keeps it: floats with all their digits, "" where there is none."""
        if isinstance(self.value, float):
            return "" if math.isnan(self.value) else repr(float(self.value))
        return str(self.value)


@dataclass(frozen=True)
class Column:
    """A column: its key, its heading, whether it is a number, whether people choose among its values."""

    key: str
    title: str
    numeric: bool = True
    choose: bool = False
    help: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of a page. tools: a filter with its state in the address; cards: folds on a narrow screen.

    exported: the name of its files, "" for none, in the given forms.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    tools: bool = False
    cards: bool = False
    exported: str = ""
    forms: tuple[str, ...] = ("csv", "md", "tex", "json")
    choices: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, column in enumerate(self.columns):
            if column.choose:
                self.choices[column.key] = sorted({row[place].raw for row in self.rows})


def slug(text: str) -> str:
    """A file name for any text: letters, digits and . _ + - stay; a hash keeps changed names apart."""
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")[:80]
    return plain if plain == text and plain else f"{plain or 'name'}-{sha256(text.encode()).hexdigest()[:8]}"


def percent(value: float, digits: int = 1) -> str:
    """A fraction for people; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def number(value: float, digits: int = 3) -> str:
    """A number for people with three digits; a dash where there is none."""
    return "–" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.{digits}g}"


def interval(low: float, high: float) -> str:
    """An interval of fractions: [92, 98]."""
    return f"[{100 * low:.0f}, {100 * high:.0f}]"


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 12 s, 3.4 min, 2.1 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def of_table(
    table: Table,
    titles: dict[str, str] | None = None,
    link: Callable[[str, Any, Row], str] | None = None,
    tools: bool = False,
    exported: str = "",
) -> Grid:
    """A grid of a leaderboard table: percentages with their interval, three digits otherwise.

    `link(column, value, row)` says where a cell leads, "" for nowhere.
    """
    ends = {end for pair in table.intervals.values() for end in pair}
    names = [name for name in table.frame.columns if name not in ends]
    numeric = {name: pd.api.types.is_numeric_dtype(table.frame[name]) for name in names}
    columns = [
        Column(name, (titles or {}).get(name, name.replace("_", " ")), numeric[name]) for name in names
    ]
    rows = []
    for row in table.frame.to_dict("records"):
        cells = []
        for name in names:
            value, note = row[name], ""
            if name in table.percent:
                text = percent(value)
            elif isinstance(value, float):
                text = number(value)
            else:
                text = str(value)
            if name in table.intervals:
                low, high = table.intervals[name]
                note = interval(row[low], row[high])
            cells.append(Cell(value, text, link(name, value, row) if link else "", note))
        rows.append(cells)
    return Grid(table.name, table.caption, columns, rows, tools=tools, exported=exported)
