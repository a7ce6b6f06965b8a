"""A run against its baseline: moves are named sample by sample, only what got worse is a regression."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

import bench.commands.check
from bench.cli import main
from bench.record import Record
from bench.regress import KEPT, Move, compare, junit, load_baseline, regressed, save_baseline, summary
from models.errors import UserError
from tests.bench.builders import attacked, cell, outcomes, proved

FGSM, DEEPFOOL = cell("fgsm"), cell("deepfool", eps=None, norm="l2")
IBP = cell("ibp", kind="certificate")
REACH = [0.05, None, 0.1, None]
NEAR = [0.5, 0.7, None, None]
HELD = [False, True, False, True]
CLEAN = [True, True, True, False]


def run(reach=REACH, near=NEAR, held=HELD, clean=CLEAN) -> list[Record]:
    return [
        attacked(FGSM, reach, clean=clean),
        attacked(DEEPFOOL, near, clean=clean),
        proved(IBP, held, clean=clean),
    ]


def moves(folder: Path, records: list[Record], baseline: list[Record] | None = None) -> list[Move]:
    """The comparison of `records` with a baseline that went through its file."""
    path = folder / "baselines" / "ci.parquet"
    save_baseline(outcomes(*(run() if baseline is None else baseline)), path)
    return compare(load_baseline(path), outcomes(*records))


def moved(found: list[Move]) -> list[Move]:
    return [move for move in found if move.worse or move.better or move.missing]


def test_an_unchanged_run_does_not_move(tmp_path: Path) -> None:
    found = moves(tmp_path, run())
    assert len(found) == 3
    assert moved(found) == []
    assert not any(regressed(move, 0) for move in found)
    assert [move.before for move in found] == [move.after for move in found]


def test_the_order_of_records_and_rows_does_not_matter(tmp_path: Path) -> None:
    backwards = outcomes(*reversed(run())).iloc[::-1].reset_index(drop=True)
    path = tmp_path / "ci.parquet"
    save_baseline(backwards, path)
    assert moved(compare(load_baseline(path), outcomes(*run()))) == []


def test_the_same_run_is_the_same_baseline_file(tmp_path: Path) -> None:
    save_baseline(outcomes(*run()), tmp_path / "a")
    save_baseline(outcomes(*reversed(run())), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_one_sample_that_an_attack_lost_is_named_with_both_numbers(tmp_path: Path) -> None:
    (move,) = moved(moves(tmp_path, run(reach=[0.05, None, None, None])))
    assert (move.worse, move.better, move.n) == ((2,), (), 4)
    assert (move.before, move.after) == (0.25, 0.5)
    assert regressed(move, 0)
    assert not regressed(move, 1)
    line = move.line()
    for word in ("mnist5k | lenet | fgsm | linf-0.1", "25.0 %", "50.0 %", "of 4", "worse on samples 2"):
        assert word in line


def test_one_sample_that_a_certificate_lost_is_a_regression(tmp_path: Path) -> None:
    (move,) = moved(moves(tmp_path, run(held=[False, False, False, True])))
    assert move.worse == (1,)
    assert (move.before, move.after) == (0.5, 0.25)
    assert move.cell == "mnist5k | lenet | ibp | linf-0.1"
    assert regressed(move, 0)


def test_a_stronger_attack_and_a_tighter_proof_are_no_regressions(tmp_path: Path) -> None:
    better = run(reach=[0.05, 0.1, 0.1, None], held=[True, True, False, True])
    found = moved(moves(tmp_path, better))
    assert [(move.worse, move.better) for move in found] == [((), (1,)), ((), (0,))]
    assert not any(regressed(move, 0) for move in found)


def test_a_gain_does_not_make_up_for_a_loss(tmp_path: Path) -> None:
    (move,) = moved(moves(tmp_path, run(reach=[None, 0.05, 0.1, None])))
    assert (move.before, move.after) == (0.25, 0.25)
    assert (move.worse, move.better) == ((0,), (1,))
    assert regressed(move, 0)


def test_a_lost_clean_prediction_is_a_regression_and_no_success_of_the_attack(tmp_path: Path) -> None:
    found = moved(moves(tmp_path, run(clean=[True, False, True, False])))
    assert {move.worse for move in found} == {(1,)}
    assert len(found) == 3
    gained = moved(moves(tmp_path, run(clean=[True] * 4)))
    assert {move.better for move in gained} == {(3,)}
    assert {move.worse for move in gained} == {()}


def test_a_minimal_attack_that_finds_nothing_any_more_is_a_regression(tmp_path: Path) -> None:
    (move,) = moved(moves(tmp_path, run(near=[0.5, None, None, None])))
    assert (move.worse, move.cell) == ((1,), "mnist5k | lenet | deepfool | l2-minimal")


def test_a_minimal_attack_that_needs_more_than_before_is_a_regression(tmp_path: Path) -> None:
    """Success says little about an attack that always succeeds: what it achieves is the distance."""
    (move,) = moved(moves(tmp_path, run(near=[0.5, 1.4, None, None])))
    assert move.worse == (1,)
    (move,) = moved(moves(tmp_path, run(near=[0.25, 0.7, None, None])))
    assert (move.worse, move.better) == ((), (0,))
    rounding = moves(tmp_path, run(near=[0.5 * (1 + 1e-6), 0.7 * (1 - 1e-6), None, None]))
    assert moved(rounding) == []


def test_a_missing_cell_is_a_regression(tmp_path: Path) -> None:
    (move,) = moved(moves(tmp_path, run()[:2]))
    assert move.missing
    assert regressed(move, 100)
    assert "mnist5k | lenet | ibp | linf-0.1: in the baseline (50.0 %) but not in this run" in move.line()


def test_a_cell_on_fewer_images_is_a_missing_one(tmp_path: Path) -> None:
    shorter = [attacked(FGSM, REACH[:3], clean=CLEAN[:3]), *run()[1:]]
    (move,) = moved(moves(tmp_path, shorter))
    assert move.missing
    assert move.cell.startswith("mnist5k | lenet | fgsm")


def test_cells_and_images_that_the_baseline_lacks_are_no_regression(tmp_path: Path) -> None:
    longer = [attacked(FGSM, [*REACH, None], clean=[*CLEAN, True]), *run()[1:], attacked(cell("pgd"), [None])]
    assert moved(moves(tmp_path, longer)) == []


def test_the_same_attack_at_two_radii_or_with_two_settings_is_two_cells(tmp_path: Path) -> None:
    settings = ({"eps": 0.1}, {"eps": 0.3}, {"eps": None}, {"chosen": {"steps": 3}}, {"norm": "l2"})
    base = [attacked(cell("pgd", **setting), [0.05, None]) for setting in settings]
    base.append(attacked(cell("pgd", defense="polytope"), [0.05, None]))
    found = moves(tmp_path, [*base[:3], attacked(base[3].cell, [None, None]), *base[4:]], base)
    assert len(found) == 6
    (move,) = moved(found)
    assert "pgd(steps=3)" in move.cell


def test_a_long_list_of_samples_is_cut() -> None:
    move = Move("cell", 40, 0.0, 1.0, tuple(range(25)), ())
    assert "worse on samples 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 15 more" in move.line()


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None])
def test_a_damaged_baseline_is_one_clear_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ci.parquet"
    save_baseline(outcomes(*run()), path)
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(UserError, match="damaged") as refusal:
        load_baseline(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_absent_baseline_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="check --update"):
        load_baseline(tmp_path / "ci.parquet")


def test_a_table_that_is_no_baseline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ci.parquet"
    pd.DataFrame({"data": ["mnist5k"]}).to_parquet(path)
    with pytest.raises(UserError, match="is no baseline: it lacks"):
        load_baseline(path)


def test_the_summary_says_what_would_have_to_be_allowed() -> None:
    found = [Move("a", 9, 0.5, 0.4, (1, 2, 3), ()), Move("b", 9, 0.5, 0.6, (4,), (5, 6))]
    lost = Move("c", 9, 0.5, float("nan"), (), (), missing=True)
    said = "2 cells compared with b.parquet: 2 regressions (up to 3 samples of a cell are worse, see --allow)"
    assert summary(found, Path("b.parquet"), 0) == said
    assert summary(found, Path("b.parquet"), 2) == said.replace("2 regressions", "1 regressions")
    assert summary(found, Path("b.parquet"), 3) == "2 cells compared with b.parquet: 0 regressions"
    assert summary([lost], Path("b.parquet"), 3) == "1 cells compared with b.parquet: 1 regressions"


def test_a_baseline_without_rows_does_not_let_everything_pass(tmp_path: Path) -> None:
    path = tmp_path / "ci.parquet"
    save_baseline(outcomes(*run()).iloc[:0], path)
    with pytest.raises(UserError, match="has no rows"):
        load_baseline(path)


def test_junit_parses_and_names_what_failed(tmp_path: Path) -> None:
    found = moves(tmp_path, run(reach=[0.05, None, None, None])[:2])
    suite = ElementTree.fromstring(junit(found, 0))
    assert suite.tag == "testsuite"
    assert suite.attrib["tests"] == "3"
    assert suite.attrib["failures"] == "2"
    failed = {case.attrib["name"]: case[0].attrib["message"] for case in suite if len(case)}
    assert set(failed) == {"mnist5k | lenet | fgsm | linf-0.1", "mnist5k | lenet | ibp | linf-0.1"}
    assert "worse on samples 2" in failed["mnist5k | lenet | fgsm | linf-0.1"]
    assert len(suite.findall("testcase")) == 3
    allowed = ElementTree.fromstring(junit(found, 1))
    assert allowed.attrib["failures"] == "1"


def test_junit_of_names_that_mean_something_in_xml() -> None:
    move = Move('<net> & "co"', 1, 1.0, 0.0, (0,), ())
    (case,) = ElementTree.fromstring(junit([move], 0))
    assert case.attrib["name"] == '<net> & "co"'


def retrained(reach=REACH, near=NEAR, held=HELD, clean=CLEAN) -> list[Record]:
    """The same judges on a network of other weights."""
    other = {"weights": "f" * 16}
    return [
        attacked(cell("fgsm", **other), reach, clean=clean),
        attacked(cell("deepfool", eps=None, norm="l2", **other), near, clean=clean),
        proved(cell("ibp", kind="certificate", **other), held, clean=clean),
    ]


def test_of_another_network_it_is_worse_that_an_attack_breaks_more(tmp_path: Path) -> None:
    """The gate of a model's release: its attacks are the same, and it is the one that changed."""
    (move,) = moved(moves(tmp_path, retrained(reach=[0.05, 0.02, None, None])))
    assert (move.worse, move.better) == ((1,), (2,))
    assert regressed(move, 0)
    assert "another network" in move.line()


def test_of_another_network_it_is_worse_that_its_margins_shrink(tmp_path: Path) -> None:
    (move,) = moved(moves(tmp_path, retrained(near=[0.4, 0.9, 0.3, None])))
    assert (move.worse, move.better) == ((0, 2), (1,))


def test_of_another_network_lost_predictions_and_proofs_are_worse_as_ever(tmp_path: Path) -> None:
    lost = [True, False, True, False]
    found = moves(tmp_path, retrained(clean=lost, held=[False, False, True, True]))
    assert {move.cell.split(" | ")[2]: (move.worse, move.better) for move in found} == {
        "fgsm": ((1,), ()),
        "deepfool": ((1,), ()),
        "ibp": ((1,), (2,)),
    }
    assert not moved(moves(tmp_path, retrained()))


def test_a_baseline_of_before_networks_were_told_apart_is_of_the_same_one(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    outcomes(*run())[KEPT].to_parquet(path)
    (move,) = moved(compare(load_baseline(path), outcomes(*retrained(reach=[0.05, 0.02, 0.1, None]))))
    assert (move.worse, move.better) == ((), (1,))
    assert not regressed(move, 0)


def test_a_baseline_of_before_networks_were_told_apart_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise a weaker network under the same name passes the gate as a stronger attack, in silence."""

    def stopped(*_: object) -> None:
        raise UserError("stopped")

    monkeypatch.setattr(bench.commands.check, "run_missing", stopped)
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    outcomes(*run())[KEPT].to_parquet(old)
    save_baseline(outcomes(*run()), new)
    for path, notes in ((old, 1), (new, 0)):
        assert main(["check", "--baseline", str(path)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert [line.startswith("note: ") for line in said] == [True] * notes + [False]
        if notes:
            assert str(old) in said[0]
            assert "yours is taken for the same network" in said[0]
            assert "--update" in said[0]


def test_the_way_to_make_a_baseline_names_the_matrix(tmp_path: Path) -> None:
    """Copied without it, the command would judge the suite's own networks ever after."""
    path = tmp_path / "my gate.parquet"
    with pytest.raises(UserError) as refusal:
        load_baseline(path, "my gate.toml")
    assert str(refusal.value).endswith(f"check --update --matrix 'my gate.toml' --baseline '{path}'")


def test_a_baseline_of_other_cells_cannot_judge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cell in common"):
        moves(tmp_path, [attacked(cell("pgd"), REACH)])
