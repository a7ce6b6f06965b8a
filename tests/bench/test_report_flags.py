"""Flags and curves of a report: planted signs are found, innocent rows stay clean, curves are exact."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.outcomes import gather
from bench.record import Record
from bench.report.curves import at, by_passes, envelope, minimal_curves
from bench.report.flags import flags
from bench.report.game_page import payoffs
from bench.report.leaderboard import board_grid
from bench.report.material import Material
from bench.report.model_figures import overlap, overlap_figure
from bench.report.report import Report
from bench.report.subject import Subject, subjects
from bench.tables import bracket
from tests.bench.builders import attacked, cell, proved, record
from tests.bench.sites import PROOF, failed, random_records, some_records

N = 12
SAFE = proved(cell("ibp", images=N, **PROOF), [False] * N)


def subject(*records: Record) -> Subject:
    (found,) = subjects(records)
    return found


def words(*records: Record, clashes: tuple[str, ...] = ()) -> list[str]:
    """The flags of a model at linf 0.1."""
    return [flag.word for flag in flags(subject(*records), "linf", 0.1, list(clashes))]


def test_an_innocent_row_has_no_flags() -> None:
    small = attacked(cell("pgd", images=N, eps=0.05), [0.04] * 5 + [None] * 7)
    large = attacked(cell("pgd", images=N), [0.04] * 5 + [0.1] * 4 + [None] * 3)
    foreign = attacked(cell("transfer", images=N, chosen={"source": "net"}), [0.04] * 2 + [None] * 10)
    assert words(small, large, foreign, SAFE) == []


def test_what_is_missing_is_a_flag() -> None:
    attack = attacked(cell("pgd", images=N), [None] * N)
    assert words(attack) == ["no certificate"]
    assert words(attack, SAFE, failed("fgsm"), failed("cw")) == ["2 failed"]
    assert words(SAFE, failed("pgd")) == ["no attack"]
    # A judge that failed under another threat says nothing of this one.
    assert words(attack, SAFE, failed("fgsm", norm="l2"), failed("fgsm", eps=0.3)) == []
    assert flags(subject(SAFE, failed("pgd")), "linf", 0.1, [])[0].fatal


def test_an_attack_that_finds_less_at_a_larger_radius_is_a_flag() -> None:
    small = attacked(cell("pgd", images=N, eps=0.05), [0.04] * 8 + [None] * 4)
    weak = attacked(cell("pgd", images=N), [None] * N)
    assert words(small, weak, SAFE) == ["rises with ε"]
    # Five of twelve may be chance: McNemar's p is 2 / 2^5.
    fewer = attacked(cell("pgd", images=N, eps=0.05), [0.04] * 5 + [None] * 7)
    assert words(fewer, weak, SAFE) == []


def test_an_attack_on_another_model_that_breaks_more_is_a_flag() -> None:
    own = attacked(cell("pgd", images=N), [None] * N)
    foreign = attacked(cell("transfer", images=N, chosen={"source": "net"}), [0.1] * 7 + [None] * 5)
    assert words(own, foreign, SAFE) == ["transfer wins"]
    assert words(foreign, SAFE) == []


def test_an_attack_that_saw_zero_gradients_is_a_flag() -> None:
    columns = {"clean": [True] * N, "zero_gradient": [True] * 3 + [False] * 9}
    (found,) = flags(subject(record(cell("pgd", images=N), **columns), SAFE), "linf", 0.1, [])
    assert (found.word, found.fatal) == ("zero gradient", False)
    assert "pgd on 3 samples" in found.meaning


def test_a_contradiction_is_fatal_under_its_own_norm_only() -> None:
    attack = attacked(cell("pgd", images=N), [None] * N)
    assert words(attack, SAFE, clashes=("sample 1 of x on lenet: 'ibp' certifies linf 0.1",)) == [
        "contradiction"
    ]
    assert words(attack, SAFE, clashes=("sample 1 of x on lenet: 'ibp' certifies l2 0.1",)) == []


def test_the_curves_pass_through_the_bracket_and_never_cross() -> None:
    for made in subjects(random_records(6, 40)):
        frame = envelope(made, "linf")
        assert frame["attacked"].is_monotonic_decreasing
        assert frame["certified"].is_monotonic_decreasing
        assert (frame["certified"] <= frame["attacked"]).all()
        (row,) = bracket(made.outcomes, "linf", 0.1).frame.to_dict("records")
        assert at(made, "linf", 0.1) == (row["certified"], row["attacked"])
        assert frame["attacked"].iloc[0] == row["clean"]


def test_curves_against_brute_force() -> None:
    made = subject(*some_records())
    outcomes = made.outcomes
    for eps in (0.0, 0.02, 0.03, 0.09, 0.1, 0.11, 0.25, 0.3):
        broken, proofs = set(), set()
        for row in outcomes.to_dict("records"):
            if not row["clean"] or (row["success"] and row["distance"] <= eps):
                broken.add(row["index"])
            if row["kind"] == "certificate" and row["certified"] and row["eps"] >= eps:
                proofs.add(row["index"])
        expected = len(proofs) / N, 1 - len(broken) / N
        assert at(made, "linf", eps) == pytest.approx(expected)
    lines = minimal_curves(made, "linf")
    assert set(lines["judge"]) == {"deepfool"}
    assert lines["accuracy"].iloc[0] == 11 / 12


def test_passes_say_when_each_sample_fell() -> None:
    made = record(
        cell("pgd", images=4),
        clean=[True, True, True, False],
        success=[True, True, False, True],
        distance=[0.1, 0.1, np.nan, 0.0],
        forward=[1, 5, 20, 0],
        backward=[1, 5, 20, 0],
    )
    frame = by_passes(subject(made), "linf", 0.1).set_index("passes")["accuracy"]
    assert frame.to_dict() == {1.0: 0.75, 2.0: 0.5, 10.0: 0.25, 40.0: 0.25}


def test_the_overlap_of_attacks_by_hand() -> None:
    first = attacked(cell("fgsm"), [0.1, 0.1, None, None])
    second = attacked(cell("pgd"), [0.1, 0.1, 0.1, None])
    third = attacked(cell("square", images=2), [None, None])
    table = overlap(subject(first, second, third), "linf", 0.1)
    assert table.loc["fgsm", "pgd"] == 1.0
    assert table.loc["pgd", "fgsm"] == pytest.approx(2 / 3)
    assert table.loc["pgd", "pgd"] == 1.0
    # Only the two samples that both saw count.
    assert table.loc["pgd", "square"] == 0.0
    assert np.isnan(table.loc["square", "pgd"])


def test_attacks_that_break_nothing_have_no_overlap_to_draw() -> None:
    nothing = [attacked(cell(name), [None] * 4) for name in ("fgsm", "pgd")]
    assert overlap_figure(subject(*nothing), "linf", 0.1) is None
    assert overlap_figure(subject(nothing[0]), "linf", 0.1) is None
    some = attacked(cell("square"), [0.1, None, None, None])
    assert overlap_figure(subject(*nothing, some), "linf", 0.1) is not None


def test_a_game_is_played_on_images_that_all_share() -> None:
    records = (
        attacked(cell("fgsm", model="a"), [0.1, None, None, None]),
        attacked(cell("pgd", model="a", images=3), [0.1, None, None]),
        attacked(cell("fgsm", model="b"), [None, None, None, 0.1]),
        attacked(cell("pgd", model="b"), [None, 0.1, None, None]),
        attacked(cell("square", model="b"), [0.1] * 4),
        proved(cell("ibp", model="a", **PROOF), [False] * 4),
    )
    report = Report(Material((), records, (), (), {}))
    table, n = payoffs(report, report.boards[0])
    assert n == 3
    assert list(table.index) == ["fgsm", "pgd"]
    assert table["a"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert table["b"].tolist() == pytest.approx([1.0, 2 / 3])


def test_a_board_equals_the_bracket_of_all_models_at_once() -> None:
    records = [*random_records(20, 30), *some_records("z")]
    report = Report(Material((), tuple(records), (), (), {}))
    expected = bracket(gather(records), "linf", 0.1).frame
    found = report.boards[0].ranked[list(expected.columns)]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert [row[1].value for row in board_grid(report.boards[0]).rows] == list(expected["model"])


def test_a_sign_in_a_record_is_a_flag_of_its_threat_alone() -> None:
    attack = attacked(cell("pgd", images=N), [None] * N)
    said = {"zero gradient": "gradients of 100 % of the images are zero throughout"}
    marked = Record(attack.header.model_copy(update={"signs": said}), attack.outcomes)
    assert words(marked, SAFE) == ["zero gradient"]
    assert "zero gradient" not in [flag.word for flag in flags(subject(marked, SAFE), "l2", 0.5, [])]
