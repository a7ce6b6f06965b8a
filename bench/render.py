"""Tables as CSV, Markdown, HTML and terminal text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from html import escape
from pathlib import Path

import pandas as pd
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bench.tables import Table
from models.atomic import write_atomically
from models.norms import NORMS

STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;border-bottom:1px solid #d0d0d0;text-align:right;white-space:nowrap}
th{border-bottom:2px solid #555}td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}
div{overflow-x:auto}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#e6e6e6}td{border-color:#3a3d42}}
</style>"""


# What the files of tables are called: a folder of leaderboards may hold files of the user's own.
OURS = re.compile(
    rf"((transfer-|defended-)?({'|'.join(NORMS)})-[0-9][0-9.e+-]*(-judges)?"
    r"|rho-adv|not-run|corruption-error|corruption-families)\.(csv|md|html)"
)


def formatted(table: Table) -> pd.DataFrame:
    """The frame as people read it: percentages with their interval beside them, three digits otherwise."""
    out = pd.DataFrame(index=table.frame.index)
    ends = {end for pair in table.intervals.values() for end in pair}
    for name in table.frame.columns:
        column = table.frame[name]
        if name in ends:
            continue
        if name in table.intervals:
            low, high = (table.frame[end] for end in table.intervals[name])
            out[name] = [
                _percent(value)
                if pd.isna(value)
                else f"{_percent(value)} [{100 * lower:.0f}, {100 * upper:.0f}]"
                for value, lower, upper in zip(column, low, high, strict=True)
            ]
        elif name in table.percent:
            out[name] = [_percent(value) for value in column]
        elif pd.api.types.is_float_dtype(column):
            out[name] = [("-" if pd.isna(value) else f"{value:.3g}") for value in column]
        else:
            out[name] = column.astype(str)
    return out


def _percent(value: float) -> str:
    return "-" if pd.isna(value) else f"{100 * value:.1f} %"


def write(tables: Iterable[Table], folder: Path) -> dict[str, str]:
    """Writes every table as .csv, .md and .html under `folder`; of other files removes only older tables.

    Returns the digest of what was written, by file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for table in tables:
        shown = formatted(table)
        page = shown.to_html(index=False, border=0, justify="right")
        texts = {
            "csv": table.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
            "md": f"{table.caption}.\n\n{shown.to_markdown(index=False)}\n",
            "html": (
                '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
                f"<title>{escape(table.name)}</title>\n"
                f'<meta name="viewport" content="width=device-width">\n{STYLE}</head>\n'
                f"<body><h1>{escape(table.name)}</h1>\n<p>{escape(table.caption)}.</p>\n<div>{page}</div>\n</body></html>\n"
            ),
        }
        for suffix, text in texts.items():
            name, content = f"{table.name}.{suffix}", text.encode()
            write_atomically(folder / name, content)
            written[name] = sha256(content).hexdigest()
    for old in ours(folder):
        if old.name not in written:
            old.unlink()
    return written


def ours(folder: Path) -> list[Path]:
    """The files of `folder` that are called as those of tables are."""
    return [path for path in folder.glob("*") if OURS.fullmatch(path.name) and path.is_file()]


class Sheet(BaseModel):
    """A table as it is printed, all text; `right` tells the columns of numbers."""

    name: str
    caption: str
    columns: list[str]
    right: list[bool]
    rows: list[list[str]]


def sheet(table: Table) -> Sheet:
    """What is printed of a table."""
    shown = _numbered(formatted(table), table.percent) if "source" in table.frame else formatted(table)
    right = []
    for name in shown.columns:
        numeric = name not in table.frame or name in table.percent
        right.append(bool(numeric or pd.api.types.is_numeric_dtype(table.frame[name])))
    return Sheet(
        name=table.name,
        caption=table.caption,
        columns=[name.replace("_", " ") for name in shown.columns],
        right=right,
        rows=[[str(value) for value in row] for row in shown.itertuples(index=False)],
    )


def show(shown: Sheet, console: Console) -> None:
    """Prints a table to the terminal."""
    rich = RichTable(
        title=Text(shown.name, style="bold"),
        caption=Text(shown.caption),
        title_justify="left",
        caption_justify="left",
    )
    for name, right in zip(shown.columns, shown.right, strict=True):
        rich.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in shown.rows:
        rich.add_row(*map(Text, row))
    console.print(rich)


def _numbered(shown: pd.DataFrame, models: tuple[str, ...]) -> pd.DataFrame:
    """A transfer matrix whose columns are the numbers of its models, which fits a terminal."""
    number = {name: f"({place})" for place, name in enumerate(models, start=1)}
    named = shown["source"].map(lambda name: f"{number.get(name, '')} {name}".strip())
    return shown.assign(source=named).rename(columns=number)


def wide_console() -> Console:
    """A console that does not squeeze tables into 80 columns where there is no terminal.

    Brackets are text: they stand in names and messages.
    """
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=140, markup=False)
