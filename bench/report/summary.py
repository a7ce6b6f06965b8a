"""The report on one page of A4, as PDF, made without a browser."""

from __future__ import annotations

from xml.etree import ElementTree

import altair as alt
import pandas as pd
import vl_convert

from bench.report.boards import Board
from bench.report.bracket_figure import bracket_shape
from bench.report.export import on_paper
from bench.report.figures import Spec, rows_of
from bench.report.grid import percent
from bench.report.ranks import spelled
from bench.report.report import Report

BOARDS = 4
ROWS = 12
"""What fits the page: the first leaderboards, and the first rows of each."""
WIDTH = 500
A4 = (595, 842)
"""Points."""


def summary_pdf(report: Report) -> bytes:
    """The brackets of the first leaderboards with their numbers; the rest is counted in its heading."""
    drawn = ElementTree.fromstring(vl_convert.vegalite_to_svg(summary_spec(report)))
    width, height = (float(drawn.attrib[side]) for side in ("width", "height"))
    scale = min(A4[0] / width, A4[1] / height, 1.0)
    drawn.attrib |= {"width": str(A4[0]), "height": str(A4[1])}
    drawn.attrib["viewBox"] = f"0 0 {A4[0] / scale} {A4[1] / scale}"
    return bytes(vl_convert.svg_to_pdf(ElementTree.tostring(drawn, encoding="unicode")))


def summary_spec(report: Report) -> Spec:
    """The page as one Vega-Lite specification."""
    boards = [board for board in report.boards if len(board.ranked)]
    headers = [record.header for record in report.material.records]
    done = sum(header.status == "done" for header in headers)
    failed = sum(header.status == "failed" for header in headers) + len(report.material.unreadable)
    lines = [
        f"{len(report.subjects)} models, {done} cells done, {failed} failed or unreadable."
        " Solid: certified; shaded: the gap; diamond: clean; dot: naive attacks; lines: 95 % intervals.",
    ]
    if len(boards) > BOARDS:
        lines.append(f"The first {BOARDS} of {len(boards)} leaderboards.")
    spec: Spec = {
        "$schema": alt.SCHEMA_URL,
        "title": {
            "text": "Robust accuracy lies in [certified, attacked]",
            "offset": 18,
            "subtitle": lines,
            "anchor": "start",
        },
        "padding": 24,
        "spacing": 18,
        "vconcat": [_panel(board, number) for number, board in enumerate(boards[:BOARDS])] or [_empty()],
        "datasets": {f"board{n}": rows_of(_frame(board)) for n, board in enumerate(boards[:BOARDS])},
    }
    return on_paper(spec)


def _frame(board: Board) -> pd.DataFrame:
    frame = board.ranked.head(ROWS)
    keep = [
        "clean",
        "certified",
        "attacked",
        "certified_low",
        "certified_high",
        "attacked_low",
        "attacked_high",
        "naive",
    ]
    named = [
        f"{spelled(int(row['best']), int(row['worst']))}   {row['defended']}   "
        f"{percent(row['certified'])} – {percent(row['attacked'])}"
        for row in frame.to_dict("records")
    ]
    return frame[keep].assign(defended=named)


def _panel(board: Board, number: int) -> Spec:
    more = len(board.ranked) - ROWS
    title = board.title + (f" (and {more} more)" if more > 0 else "")
    step = max(11, 24 - 3 * number) if len(board.ranked) > 6 else 20
    legend_free = [
        {
            **layer,
            "mark": _fitting(layer["mark"], step),
            "encoding": _without_legend(layer["encoding"]),
            "data": {"name": f"board{number}"},
        }
        for layer in bracket_shape()["layer"]
    ]
    panel = {
        "title": {"text": title, "anchor": "start", "fontSize": 12},
        "width": WIDTH,
        "height": {"step": step},
    }
    return {**panel, "layer": legend_free}


def _fitting(mark: Spec, step: int) -> Spec:
    """A mark no higher than its row."""
    return {**mark, "height": min(mark["height"], step - 3)} if "height" in mark else mark


def _without_legend(encoding: Spec) -> Spec:
    plain = {
        name: dict(channel) if isinstance(channel, dict) else channel for name, channel in encoding.items()
    }
    if "field" in plain.get("color", {}):
        plain["color"]["legend"] = None
    plain["y"]["axis"] = {"title": None, "labelLimit": 420}
    return plain


def _empty() -> Spec:
    text = "No judge of a fixed eps has finished: there is no leaderboard."
    return {"data": {"values": [{"text": text}]}, "mark": "text", "encoding": {"text": {"field": "text"}}}
