"""A report in a notebook: its leaderboards as one piece of HTML that needs nothing around it."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.boards import Board
from bench.report.grid import percent
from bench.report.ranks import spelled
from bench.report.site import environment

SHOWN = 20


def notebook_view(boards: Sequence[Board]) -> str:
    """The first SHOWN rows of each leaderboard, with their brackets."""
    shown = [
        {
            "title": board.title,
            "more": max(len(board.ranked) - SHOWN, 0),
            "unranked": len(board.unranked),
            "rows": [
                {
                    "rank": spelled(int(row["best"]), int(row["worst"])),
                    "model": row["defended"],
                    "n": int(row["n"]),
                    "clean": percent(row["clean"]),
                    "certified": percent(row["certified"]),
                    "attacked": percent(row["attacked"]),
                    "from": f"{100 * row['certified']:.2f}",
                    "to": f"{100 * row['attacked']:.2f}",
                }
                for row in board.ranked.head(SHOWN).to_dict("records")
            ],
        }
        for board in boards
    ]
    return environment().get_template("notebook.html").render(boards=shown)
