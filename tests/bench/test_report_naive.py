"""The naive and the adaptive score on the leaderboard: the defended table's numbers, from records alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.catalog import Catalog, Entry
from bench.defended_table import defended
from bench.outcomes import gather
from bench.record import Record
from bench.report.build import build
from bench.report.naive import knows_nothing
from bench.report.report import Report
from tests.bench.builders import attacked, catalog, cell
from tests.bench.sites import numbers, parsed, save

W = "0123456789abcdef"
BOARD, TABLE = "leaderboards/mnist5k-linf-0.1.html", "leaderboard-mnist5k-linf-0.1"


def with_both() -> Catalog:
    """The test catalog with a defence at the input and one that trains."""
    known = catalog()
    jpeg = Entry(name="jpeg", summary="-", paper="-", at_input=True)
    trained = Entry(name="adversarial-pgd", summary="-", paper="-")
    return known.model_copy(update={"defenses": {**known.defenses, "jpeg": jpeg, "adversarial-pgd": trained}})


def transferred(defense: str, source: str, weights: str, distances: list[float | None]) -> Record:
    """Examples made on `source` and handed to lenet behind `defense`."""
    of = cell("transfer", defense=defense, chosen={"source": source}, weights=weights, images=len(distances))
    return attacked(of, distances)


def records() -> list[Record]:
    """Six samples of lenet, behind jpeg and trained; jpeg hides four of five points from the naive."""
    six = {"images": 6}
    behind = {"defense": "jpeg", "weights": f"{W}+jpeg{{}}", "images": 6}
    trained = {"defense": "adversarial-pgd", "weights": "f" * 16, "images": 6}
    return [
        attacked(cell("pgd", **six), [0.05] * 5 + [None]),
        attacked(cell("pgd", **behind), [0.05, 0.06, 0.07, None, None, None]),
        transferred("jpeg", "lenet", f"{W}+jpeg{{}}<{W}", [None, None, None, 0.09, None, None]),
        transferred("jpeg", "conv-small", f"{W}+jpeg{{}}<{'c' * 16}", [0.01, None, None, None, None, None]),
        attacked(cell("pgd", **trained), [0.05, *[None] * 5]),
        transferred("adversarial-pgd", "lenet", f"{'f' * 16}<{W}", [None] * 4),
        transferred("adversarial-pgd", "conv-small", f"{'f' * 16}<{'c' * 16}", [0.1, None, None, None]),
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("naive")
    build(Report.of(save(folder / "run", *records())), folder / "site")
    return folder / "site"


def rows(site: Path) -> dict[str, dict[str, str]]:
    return {row["defense"]: row for row in numbers(site / BOARD, TABLE)}


def test_the_page_has_the_numbers_of_the_defended_table(site: Path) -> None:
    (table,) = defended(gather(records()), with_both())
    expected = table.frame.set_index("defense")
    for defense in ("jpeg", "adversarial-pgd"):
        for name in ("naive", "adaptive"):
            assert float(rows(site)[defense][name]) == expected.loc[defense, name]
    row = rows(site)["jpeg"]
    # Three by pgd, one by the examples handed over; the conv-small's one falls to pgd too.
    assert (float(row["naive"]), float(row["adaptive"])) == (5 / 6, 2 / 6)
    text = parsed(site / BOARD).text
    assert "+50.0 points" in text


def test_a_trained_defence_is_scored_by_examples_of_the_untrained_network(site: Path) -> None:
    row = rows(site)["adversarial-pgd"]
    # On the four images that were handed over: none broken, but pgd breaks the first.
    assert (float(row["naive"]), float(row["adaptive"])) == (1.0, 0.75)
    assert float(row["attacked"]) == 5 / 6
    assert "of 4" in parsed(site / BOARD).text


def test_without_a_defence_there_is_no_naive_number_and_all_attacks_are_adaptive(site: Path) -> None:
    row = rows(site)["none"]
    assert (row["naive"], float(row["adaptive"])) == ("", 1 / 6)


def test_the_naive_number_never_ranks(site: Path) -> None:
    # By the naive score jpeg (5/6) would stand beside the trained network; all three places go by attacks.
    assert [row["defense"] for row in numbers(site / BOARD, TABLE)] == ["adversarial-pgd", "jpeg", "none"]


def test_only_examples_from_the_network_without_the_defence_are_naive() -> None:
    naive = [r.cell.judge.label for r in records() if knows_nothing(r.cell)]
    assert naive == ["transfer(source=lenet)"] * 2
    both = f"{'f' * 16}+jpeg{{}}"
    of = cell("transfer", defense="adversarial-pgd+jpeg", chosen={"source": "lenet"}, weights=f"{both}<{W}")
    assert not knows_nothing(of)
    own = {"chosen": {"source": "lenet+adversarial-pgd"}, "weights": f"{both}<{'f' * 16}"}
    assert knows_nothing(cell("transfer", defense="adversarial-pgd+jpeg", **own))


def test_without_an_attack_that_knows_the_defence_the_page_has_no_adaptive_score(tmp_path: Path) -> None:
    weights = f"{W}+jpeg{{}}<{W}"
    save(
        tmp_path / "run",
        transferred("jpeg", "lenet", weights, [None, 0.1, None, None]),
        attacked(cell("pgd"), [0.1, None, None, None]),
    )
    build(Report.of(tmp_path / "run"), tmp_path / "site")
    row = rows(tmp_path / "site")["jpeg"]
    assert (float(row["naive"]), row["adaptive"]) == (0.75, "")
    text = parsed(tmp_path / "site" / BOARD).text
    assert "no attack knew the defence" in text
    assert not re.search(r"\bnan\b", text)
