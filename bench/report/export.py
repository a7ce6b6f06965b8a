"""Tables and figures as files: CSV, Markdown, LaTeX, JSON; SVG, PNG, PDF."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import vl_convert
from PIL import Image

from bench.report.figures import Figure, Spec, theme
from bench.report.grid import Grid
from bench.report.leaderboard import board_frame, board_grid
from bench.report.report import Report

LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "ε": r"$\varepsilon$",
    "ρ": r"$\rho$",
    "ℓ": r"$\ell$",
    "∞": r"$\infty$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\u202f": r"\,",
}
PAPER_WIDTH = 640


def latex_text(text: str) -> str:
    """Text with every character that means something to LaTeX escaped."""
    return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))


def latex(grid: Grid) -> str:
    """The table as a LaTeX table in the manner of booktabs; intervals follow their number."""
    kinds = "".join("r" if column.numeric else "l" for column in grid.columns)
    head = " & ".join(latex_text(column.title) for column in grid.columns)
    body = [
        " & ".join(latex_text(f"{cell.text or cell.raw} {cell.note}".strip()) for cell in row) + r" \\"
        for row in grid.rows
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        rf"\caption{{{latex_text(grid.caption)}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def markdown(grid: Grid) -> str:
    """The table as Markdown, for a README."""

    def escaped(text: str) -> str:
        return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", " ".join(text.split()))

    head = [escaped(column.title) for column in grid.columns]
    rule = ["---:" if column.numeric else "---" for column in grid.columns]
    rows = [[escaped(f"{cell.text or cell.raw} {cell.note}".strip()) for cell in row] for row in grid.rows]
    lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *rows)]
    return f"{escaped(grid.caption)}.\n\n" + "\n".join(lines) + "\n"


def frame_of(grid: Grid) -> pd.DataFrame:
    """The values of a table in full, by the keys of its columns."""
    data = [[cell.value for cell in row] for row in grid.rows]
    return pd.DataFrame(data, columns=[column.key for column in grid.columns])


def _csv(grid: Grid, values: pd.DataFrame) -> str:
    return str(values.to_csv(index=False, lineterminator="\n"))


def _json(grid: Grid, values: pd.DataFrame) -> str:
    # pandas' own JSON keeps fifteen digits, one too few for a float to read back the same.
    plain = values.astype(object).where(values.notna(), None)
    whole = {"caption": grid.caption, "rows": plain.to_dict("records")}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMS: dict[str, Callable[[Grid, pd.DataFrame], str]] = {
    "csv": _csv,
    "md": lambda grid, values: markdown(grid),
    "tex": lambda grid, values: latex(grid),
    "json": _json,
}


def write_table(folder: Path, grid: Grid, frame: pd.DataFrame | None = None) -> None:
    """Writes a table in its forms; `frame` holds its full values where the grid shows fewer."""
    values = frame_of(grid) if frame is None else frame
    folder.mkdir(exist_ok=True)
    for form in grid.forms:
        text = FORMS[form](grid, values)
        (folder / f"{grid.exported}.{form}").write_text(text, encoding="utf-8")


def write_boards(folder: Path, report: Report) -> None:
    """Writes the leaderboards, with every column of their frames."""
    for board in report.boards:
        if len(board.ranked):
            write_table(folder, board_grid(board), board_frame(board))


def on_paper(spec: Spec) -> Spec:
    """A figure of the pages for print: black on white, of a fixed width."""
    plain = json.loads(
        json.dumps({**spec, "config": theme("#1b1e23", "white")}).replace('"currentColor"', '"#1b1e23"')
    )
    return {**plain, "width": PAPER_WIDTH} if plain.get("width") == "container" else plain


def write_figure(folder: Path, figure: Figure) -> None:
    """Writes a figure as SVG, PNG (of 144 dots per inch) and PDF, without a browser."""
    folder.mkdir(exist_ok=True)
    spec = on_paper(figure.spec)
    svg = _numbered_anew(vl_convert.vegalite_to_svg(spec))
    (folder / f"{figure.name}.svg").write_text(svg, encoding="utf-8")
    drawn = Image.open(io.BytesIO(vl_convert.svg_to_png(svg, scale=1.5))).convert("RGB")
    # Few colours show no difference in a chart, and a third of the size.
    drawn.quantize(96).save(folder / f"{figure.name}.png", optimize=True)
    (folder / f"{figure.name}.pdf").write_bytes(vl_convert.svg_to_pdf(svg))


def _numbered_anew(svg: str) -> str:
    """Gradients counted from 0: the converter counts on from figure to figure."""
    names = list(dict.fromkeys(re.findall(r"gradient_\d+", svg)))
    return re.sub(r"gradient_\d+", lambda found: f"gradient_{names.index(found.group())}", svg)
