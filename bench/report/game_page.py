"""The game page: attacks against defences as a zero-sum game, threat by threat."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from bench.analysis.game import Game, solve
from bench.outcomes import broken_at
from bench.report.boards import Board
from bench.report.figures import BROKEN, PROVED, Figure, accuracy_axis, filled, heat_spec, rows, shape, wide
from bench.report.grid import Cell, Column, Grid, percent, slug
from bench.report.records_page import judge_path
from bench.report.report import Report
from bench.report.site import Page

SIDES = ("attacker", "defender")


def payoffs(report: Report, board: Board) -> tuple[pd.DataFrame, int]:
    """(accuracy of each defended model (columns) under each attack (rows), on how many images).

    Only attacks that were run on every ranked model count, and only images that all of these judged, so
    that every entry is measured on the same images.
    """
    parts = []
    for subject in report.subjects:
        if subject.data != board.data or subject.defended not in set(board.ranked.get("defended", [])):
            continue
        mine = subject.outcomes
        mine = mine[(mine["norm"] == board.norm) & (mine["kind"] == "attack")]
        mine = mine[mine["eps"].isna() | (mine["eps"] == board.eps)]
        held = mine["clean"] & ~broken_at(mine, board.eps)
        parts.append(mine[["judge", "index"]].assign(defended=subject.defended, held=held.astype(float)))
    if not parts:
        return pd.DataFrame(), 0
    table = pd.concat(parts).pivot_table(index=["judge", "index"], columns="defended", values="held")
    sizes = table.dropna().groupby("judge").size()
    # An attack that some model never met has no image on which all models met it.
    attacks = [judge for judge in table.index.unique("judge") if judge in sizes.index]
    common: set[Any] | None = None
    for judge in attacks:
        seen = set(table.loc[judge].dropna().index)
        common = seen if common is None else common & seen
    if not common:
        return pd.DataFrame(), 0
    kept = table.loc[[(judge, index) for judge in attacks for index in sorted(common)]]
    order = [name for name in board.ranked["defended"] if name in kept.columns]
    return kept.groupby("judge", sort=True).mean()[order], len(common)


@shape
def _mixes() -> alt.Chart:
    return (
        alt.Chart(rows("share"))
        .mark_bar(height=14)
        .encode(
            y=alt.Y("name:N", sort=None, axis=alt.Axis(title=None)),
            x=alt.X("share:Q", axis=accuracy_axis("played with probability"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color(
                "side:N",
                scale=alt.Scale(domain=list(SIDES), range=[BROKEN, PROVED]),
                legend=alt.Legend(title=None),
            ),
            tooltip=["side:N", "name:N", alt.Tooltip("share:Q", format=".1%")],
        )
    )


def strategies_figure(board: Board, table: pd.DataFrame, game: Game) -> Figure:
    """Both sides' mixed strategies, without what is never played."""
    frame = pd.DataFrame(
        [
            *(
                {"side": "attacker", "name": n, "share": s}
                for n, s in zip(table.index, game.attacker, strict=True)
            ),
            *(
                {"side": "defender", "name": n, "share": s}
                for n, s in zip(table.columns, game.defender, strict=True)
            ),
        ]
    )
    frame = frame[frame["share"] > 0].sort_values(
        ["side", "share"], ascending=[True, False], ignore_index=True
    )
    columns = (
        Column("side", "side", numeric=False),
        Column("name", "plays", numeric=False),
        Column("share", "share"),
    )
    cells = [
        [
            Cell(row["side"], row["side"]),
            Cell(row["name"], row["name"], judge_path(row["name"]) if row["side"] == "attacker" else ""),
            Cell(row["share"], percent(row["share"])),
        ]
        for row in frame.to_dict("records")
    ]
    name = slug(f"game-{board.name}")
    said = "; ".join(
        f"{row['side']} {row['name']} {percent(row['share'], 0)}" for row in frame.to_dict("records")
    )
    spec = wide(filled(_mixes(), frame), 24 * len(frame))
    grid = Grid(f"mix-{board.name}", f"Mixed strategies, {board.title}", columns, cells)
    return Figure(
        name, "What each side plays", f"Mixed strategies at {board.title}: {said}.", spec, grid, True
    )


def payoff_figure(board: Board, table: pd.DataFrame) -> Figure:
    """The payoffs as a heat map."""
    long = pd.DataFrame(
        [
            {"attack": attack, "model": model, "value": float(table.loc[attack, model])}
            for attack in table.index
            for model in table.columns
        ]
    )
    columns = (Column("attack", "attack", numeric=False), *(Column(name, name) for name in table.columns))
    cells = [
        [Cell(attack, attack), *(Cell(float(value), percent(float(value))) for value in table.loc[attack])]
        for attack in table.index
    ]
    caption = f"Accuracy of each model (columns) under each attack (rows), {board.title}"
    grid = Grid(f"payoff-{board.name}", caption, columns, cells)
    said = (
        f"Accuracy of {len(table.columns)} models under {len(table)} attacks at {board.title}, in per cent."
    )
    spec = heat_spec(long, "model", "attack", "accuracy")
    return Figure(slug(f"payoff-{board.name}"), "The payoffs: accuracy in per cent", said, spec, grid)


def games_page(report: Report) -> Page | None:
    """The page of all games, or None where no threat has an attack that met every model."""
    sections = []
    for board in report.boards:
        table, n = payoffs(report, board)
        if table.empty:
            continue
        game = solve(table.to_numpy(np.float64))
        sections.append(
            {
                "title": board.title,
                "n": n,
                "value": percent(game.value, 2),
                "lower": percent(game.lower, 2),
                "upper": percent(game.upper, 2),
                "gap": f"{game.gap:.1e}" if game.gap else "0",
                "pure": game.upper - game.lower < 1e-9,
                "figures": [strategies_figure(board, table, game), payoff_figure(board, table)],
            }
        )
    if not sections:
        return None
    return Page("game.html", "Attacks against defences, as a game", "game.html", {"sections": sections})
