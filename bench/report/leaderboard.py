"""The leaderboard page of a data set and threat: ranked rows, brackets, and what is unranked and why."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.report.boards import Board
from bench.report.bracket_figure import bracket_figure
from bench.report.grid import Bar, Cell, Column, Grid, Row, duration, interval, number, percent, slug
from bench.report.ranks import spelled
from bench.report.site import Page

COLUMNS = (
    Column("rank", "rank", help="places that the bracket and its 95 % intervals leave open"),
    Column("model", "model", numeric=False, choose=True),
    Column("defense", "defence", numeric=False, choose=True),
    Column("n", "n", help="images"),
    Column("clean", "clean", help="accuracy on unperturbed images"),
    Column(
        "bracket", "bracket", help="robust accuracy lies between certified and attacked; sorts by the gap"
    ),
    Column("certified", "certified", help="proved robust by some certificate"),
    Column("attacked", "attacked", help="broken by no attack"),
    Column(
        "adaptive",
        "adaptive",
        help="left by all attacks, which know the defence; where there is a naive number, on its images. "
        "The ranking rests on this end, never on the naive one",
    ),
    Column(
        "naive",
        "naive",
        help="left by examples that do not know the defence: made on the network without it, and handed over",
    ),
    Column("by_attacks", "rank by attacks", help="places by attacked accuracy alone, as its interval allows"),
    Column(
        "strongest",
        "strongest attack",
        numeric=False,
        help="the attack that leaves least, and what it leaves",
    ),
    Column("rho_adv", "ρ_adv", help="DeepFool's mean of |r| / |x|"),
    Column("seconds", "time", help="seconds of all judges that speak of this threat"),
    Column("flags", "flags", numeric=False, help="what should make you doubt the row"),
)


def model_path(data: str, defended: str) -> str:
    """Where a model's page lies."""
    return f"models/{slug(f'{data}_{defended}')}.html"


def records_path(data: str, defended: str, norm: str = "", eps: float = 0.0) -> str:
    """Where a model's records lie; with a threat, the place on that page."""
    mark = f"#{norm}-{eps:g}" if norm else ""
    return f"records/{slug(f'{data}_{defended}')}.html{mark}"


def board_path(board: Board) -> str:
    """Where a leaderboard lies."""
    return f"leaderboards/{slug(board.name)}.html"


def board_grid(board: Board) -> Grid:
    """The ranked rows; every cell leads to its records."""
    rows = [_row(board, row) for row in board.ranked.to_dict("records")]
    caption = f"Leaderboard of {board.title}"
    return Grid(
        f"leaderboard-{board.name}",
        caption,
        COLUMNS,
        rows,
        tools=True,
        cards=True,
        exported=f"leaderboard-{slug(board.name)}",
    )


def _row(board: Board, row: Row) -> list[Cell]:
    there = records_path(board.data, row["defended"], board.norm, board.eps)
    best, worst = int(row["best"]), int(row["worst"])
    first, last = int(row["attacked_best"]), int(row["attacked_worst"])
    bar = Bar(row["certified"], row["attacked"], row["clean"])
    strongest = str(row["strongest_attack"])
    alone = percent(row["strongest_accuracy"]) if strongest != "-" else ""
    flags = tuple((flag.word, flag.meaning) for flag in row["flags"])
    certificate = str(row["best_certificate"]) if row["best_certificate"] != "-" else ""
    return [
        Cell(best + worst / 1e5, spelled(best, worst), there),
        Cell(row["model"], row["model"], model_path(board.data, row["defended"])),
        Cell(row["defense"], row["defense"], model_path(board.data, row["defended"])),
        Cell(int(row["n"]), str(row["n"]), there),
        Cell(row["clean"], percent(row["clean"]), there),
        Cell(row["gap"], f"gap {percent(row['gap'])}", there, bar=bar),
        Cell(row["certified"], percent(row["certified"]), there, _noted(row, "certified", certificate)),
        Cell(row["attacked"], percent(row["attacked"]), there, _noted(row, "attacked", "")),
        Cell(row["adaptive"], percent(row["adaptive"]), there, _noted(row, "adaptive", _scored(row))),
        Cell(row["naive"], percent(row["naive"]), there, _illusion(row)),
        Cell(first + last / 1e5, spelled(first, last), there),
        Cell(strongest, strongest, there, alone),
        Cell(row["rho_adv"], number(row["rho_adv"]), there),
        Cell(float(row["seconds"]), duration(row["seconds"]), there),
        Cell(", ".join(word for word, _ in flags), "", there, marks=flags),
    ]


def _noted(row: Row, name: str, judge: str) -> str:
    if np.isnan(row[name]):
        return judge
    return " ".join(filter(None, (interval(row[f"{name}_low"], row[f"{name}_high"]), judge)))


def _scored(row: Row) -> str:
    """Of how many images, where these are not all of the row's."""
    return f"of {row['scored']}" if row["scored"] != row["n"] else ""


def _illusion(row: Row) -> str:
    """By how many points the naive number flatters."""
    if np.isnan(row["naive"]):
        return ""
    if np.isnan(row["adaptive"]):
        return f"{_noted(row, 'naive', '')} no attack knew the defence"
    return f"{_noted(row, 'naive', '')} {100 * (row['naive'] - row['adaptive']):+.1f} points"


def unranked_grid(board: Board) -> Grid | None:
    """The rows that have no place, with the reason, or None."""
    if board.unranked.empty:
        return None
    columns = (
        Column("model", "model", numeric=False),
        Column("defense", "defence", numeric=False),
        Column("reason", "reason", numeric=False),
    )
    rows = []
    for row in board.unranked.to_dict("records"):
        there = records_path(board.data, row["defended"])
        reason = "; ".join(flag.meaning for flag in row["flags"] if flag.fatal)
        rows.append(
            [
                Cell(row["model"], row["model"], there),
                Cell(row["defense"], row["defense"], there),
                Cell(reason, reason),
            ]
        )
    return Grid(f"unranked-{board.name}", "Unranked", columns, rows)


def leaderboard_page(board: Board, boards: list[Board]) -> Page:
    """The page of one leaderboard."""
    ranked = len(board.ranked) > 0
    return Page(
        board_path(board),
        board.title,
        "leaderboard.html",
        {
            "board": board,
            "others": [(other.title, board_path(other)) for other in boards if other is not board],
            "figure": bracket_figure(board).as_exported() if ranked else None,
            "grid": board_grid(board) if ranked else None,
            "unranked": unranked_grid(board),
            "flags": [
                (row["defended"], flag.word, flag.meaning)
                for row in board.ranked.to_dict("records")
                for flag in row["flags"]
            ],
            "no_certificate": bool(ranked and (board.ranked["certified"] == 0).all()),
        },
    )


def board_frame(board: Board) -> pd.DataFrame:
    """The ranked rows as they are exported."""
    if board.ranked.empty:
        return pd.DataFrame()
    frame = board.ranked.copy()
    frame["flags"] = [", ".join(flag.word for flag in found) for found in frame["flags"]]
    keep = ["best", "worst", "model", "defense", "n", "clean", "certified", "certified_low", "certified_high"]
    keep += ["attacked", "attacked_low", "attacked_high", "gap", "attacked_best", "attacked_worst"]
    keep += ["adaptive", "adaptive_low", "adaptive_high", "naive", "naive_low", "naive_high", "scored"]
    keep += ["strongest_attack", "strongest_accuracy", "best_certificate", "rho_adv", "seconds", "flags"]
    whole = ["best", "worst", "attacked_best", "attacked_worst", "n", "scored"]
    return frame[keep].astype(dict.fromkeys(whole, "int64"))
