"""Leaderboards against numbers worked out by hand, and their bytes."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from bench.record import Record
from bench.render import write
from bench.stats import wilson
from bench.tables import all_tables, bracket, corruptions, judges, rho_adv, threats, transfers
from tests.bench.builders import attacked, cell, outcomes, proved

PROOF = {"kind": "certificate"}
Z = 1.959963984540054
"""The standard normal's 97.5 % point."""


def wilson_by_hand(successes: int, n: int) -> tuple[float, float]:
    """Wilson 1927: the p with |p_hat - p| <= z sqrt(p (1 - p) / n), solved for p."""
    rate = successes / n
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    return centre - half, centre + half


@pytest.mark.parametrize("n", [1, 2, 10, 200, 5000])
def test_wilson_is_its_closed_form(n: int) -> None:
    for successes in {0, 1, n // 3, n - 1, n}:
        assert wilson(successes, n) == pytest.approx(wilson_by_hand(successes, n), abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 100, 500, 9_999])
def test_wilson_is_scipys_to_the_last_bit(n: int) -> None:
    for successes in {*range(0, n, max(n // 50, 1)), n}:
        theirs = binomtest(successes, n).proportion_ci(0.95, method="wilson")
        assert wilson(successes, n) == (theirs.low, theirs.high)


def test_the_ends_of_wilson_solve_its_equation() -> None:
    low, high = wilson(37, 120)
    for p in (low, high):
        assert abs(37 / 120 - p) == pytest.approx(Z * math.sqrt(p * (1 - p) / 120), rel=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(10, 10)[1] == pytest.approx(1, abs=1e-12)


def known() -> pd.DataFrame:
    """Ten samples at linf 0.1: one misclassified, four broken by some attack, two proved by some proof."""
    clean = [True] * 9 + [False]
    first = [0.05, 0.1, None, None, None, None, None, None, None, None]
    second = [None, 0.02, 0.09, 0.3, None, None, None, None, None, None]
    third = [None, None, None, 0.04, 0.2, None, None, None, None, None]
    return outcomes(
        attacked(cell("fgsm"), first, clean=clean),
        attacked(cell("pgd", eps=0.3), second, clean=clean),
        attacked(cell("deepfool", eps=None), third, clean=clean),
        proved(cell("ibp", **PROOF), [False] * 7 + [True] + [False] * 2, clean=clean),
        proved(cell("crown", eps=0.3, **PROOF), [False] * 8 + [True, False], clean=clean),
        proved(cell("lp", **PROOF), [False] * 5, clean=clean[:5]),
    )


def row_of(table: pd.DataFrame, **where: object) -> dict[str, object]:
    for name, value in where.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


def test_a_known_bracket() -> None:
    row = row_of(bracket(known(), "linf", 0.1).frame)
    assert (row["n"], row["clean"]) == (10, 0.9)
    # Broken: samples 0, 1 (fgsm), 2 (pgd within 0.1), 3 (deepfool); 4 lies beyond; 9 is a clean error.
    assert row["attacked"] == pytest.approx(0.5)
    assert row["certified"] == pytest.approx(0.2)
    assert row["gap"] == pytest.approx(0.3)
    assert (row["attacked_low"], row["attacked_high"]) == pytest.approx(wilson_by_hand(5, 10), abs=1e-9)
    assert (row["certified_low"], row["certified_high"]) == pytest.approx(wilson_by_hand(2, 10), abs=1e-9)


def test_the_bracket_at_a_larger_radius() -> None:
    row = row_of(bracket(known(), "linf", 0.3).frame)
    assert row["attacked"] == pytest.approx(0.4)
    assert row["certified"] == pytest.approx(0.1)


def test_the_strongest_attack_and_the_best_certificate_are_named() -> None:
    one = outcomes(
        attacked(cell("fgsm"), [0.05, None, None, None]),
        attacked(cell("pgd"), [0.05, 0.1, 0.1, None]),
        proved(cell("ibp", **PROOF), [False, False, False, False]),
        proved(cell("lp", **PROOF), [False, False, False, True]),
    )
    row = row_of(bracket(one, "linf", 0.1).frame)
    assert (row["strongest_attack"], row["best_certificate"]) == ("pgd", "lp")
    other = outcomes(
        attacked(cell("pgd", model="b"), [0.05, None]),
        attacked(cell("fgsm", model="b"), [None, 0.05]),
        proved(cell("lp", model="b", **PROOF), [True, False]),
        proved(cell("ibp", model="b", **PROOF), [False, True]),
    )
    both = bracket(pd.concat([one, other]), "linf", 0.1).frame
    row = row_of(both, model="lenet")
    assert (row["strongest_attack"], row["best_certificate"]) == ("pgd", "lp")
    row = row_of(both, model="b")
    assert (row["strongest_attack"], row["best_certificate"]) == ("fgsm", "ibp")
    none = outcomes(proved(cell("ibp", **PROOF), [False, False]))
    row = row_of(bracket(none, "linf", 0.1).frame)
    assert (row["strongest_attack"], row["best_certificate"]) == ("-", "-")


def test_rows_are_ordered_by_what_is_proved_then_by_what_is_left() -> None:
    left = {"a": ([None, 0.05], [False, False]), "b": ([None, None], [False, False])}
    left["c"] = ([0.05, None], [False, True])
    records = [attacked(cell("pgd", model=name), reach) for name, (reach, _) in left.items()]
    records += [proved(cell("ibp", model=name, **PROOF), held) for name, (_, held) in left.items()]
    assert bracket(outcomes(*records), "linf", 0.1).frame["model"].tolist() == ["c", "b", "a"]


def test_each_judge_alone() -> None:
    table = judges(known(), "linf", 0.1).frame
    fgsm = row_of(table, judge="fgsm")
    assert fgsm["accuracy"] == pytest.approx(0.7)
    assert fgsm["fooling_rate"] == pytest.approx(2 / 9)
    assert fgsm["rmsd"] == pytest.approx((0.05 + 0.1) / 2 / 2)
    assert fgsm["passes"] == 5
    assert (fgsm["low"], fgsm["high"]) == pytest.approx(wilson_by_hand(7, 10), abs=1e-9)
    ibp = row_of(table, judge="ibp")
    assert (ibp["n"], ibp["accuracy"]) == (10, pytest.approx(0.1))
    assert math.isnan(ibp["fooling_rate"])
    assert row_of(table, judge="lp")["n"] == 5
    deepfool = row_of(table, judge="deepfool")
    assert deepfool["accuracy"] == pytest.approx(0.8)


def test_illegal_proposals_are_counted() -> None:
    frame = outcomes(attacked(cell("fgsm"), [None, None, 0.05]))
    frame.loc[0, "legal"] = False
    assert row_of(judges(frame, "linf", 0.1).frame)["illegal"] == 1


def test_rho_adv_by_hand() -> None:
    """Norms 1, 2, 4, 5, 8; the fourth is a clean error, the fifth was never broken."""
    clean = [True, True, True, False, True]
    frame = outcomes(attacked(cell("deepfool", eps=None), [0.1, 0.4, 1.2, 0.0, None], clean=clean))
    frame["input_norm"] = [1.0, 2.0, 4.0, 5.0, 8.0]
    row = row_of(rho_adv(frame).frame)
    ratios = [0.1, 0.2, 0.3]
    assert row["rho_adv"] == pytest.approx(0.2)
    assert row["standard_error"] == pytest.approx(float(np.std(ratios, ddof=1)) / math.sqrt(3))
    assert row["median_distance"] == pytest.approx(0.4)
    assert (row["n"], row["clean_errors"], row["failures"]) == (5, 1, 1)


def test_rho_adv_of_an_attack_that_never_succeeds_is_unknown_and_not_zero() -> None:
    frame = outcomes(attacked(cell("deepfool", eps=None), [None, None, None], clean=[True, True, False]))
    row = row_of(rho_adv(frame).frame)
    assert math.isnan(row["rho_adv"])
    assert (row["clean_errors"], row["failures"]) == (1, 2)


@pytest.mark.parametrize("factor", [1e-3, 255.0])
def test_rho_adv_does_not_depend_on_the_unit_of_the_inputs(factor: float) -> None:
    frame = outcomes(attacked(cell("deepfool", eps=None), [0.1, 0.3, None, 0.7]))
    scaled = frame.assign(distance=frame["distance"] * factor, input_norm=frame["input_norm"] * factor)
    one, other = row_of(rho_adv(frame).frame), row_of(rho_adv(scaled).frame)
    for name in ("rho_adv", "standard_error", "failures"):
        assert other[name] == pytest.approx(one[name])
    assert other["median_distance"] == pytest.approx(factor * one["median_distance"])


def test_rho_adv_is_one_row_per_model_norm_and_attack_and_ignores_fixed_radii() -> None:
    frame = outcomes(
        attacked(cell("deepfool", eps=None), [0.1]),
        attacked(cell("deepfool", eps=None, norm="l2"), [0.1]),
        attacked(cell("deepfool", eps=None, defense="polytope"), [0.1]),
        attacked(cell("cw", eps=None, norm="l2"), [0.1]),
        attacked(cell("pgd"), [0.1]),
    )
    assert len(rho_adv(frame).frame) == 4
    assert "pgd" not in rho_adv(frame).frame["attack"].tolist()


def crossed() -> list[Record]:
    """Two models attacked with each other's examples, a third as source only."""
    reach = {("a", "b"): [0.1, None, 0.1, 0.1], ("b", "a"): [None] * 4, ("c", "a"): [0.1, 0.1, None, None]}
    return [
        attacked(cell("transfer", model=target, chosen={"source": source}), reached)
        for (source, target), reached in reach.items()
    ]


def test_the_transfer_matrix() -> None:
    (table,) = transfers(outcomes(*crossed()))
    assert table.name == "transfer-linf-0.1"
    frame = table.frame.set_index("source")
    assert frame.index.tolist() == ["a", "b", "c"]
    assert frame["b"].tolist()[0] == pytest.approx(0.25)
    assert frame["a"].tolist()[1:] == pytest.approx([1.0, 0.5])
    assert math.isnan(frame.loc["a", "a"])
    assert math.isnan(frame.loc["c", "b"])
    assert frame.loc["a", "rmsd"] == pytest.approx(0.05)
    assert math.isnan(frame.loc["b", "rmsd"])


def test_examples_of_other_attacks_stay_out_of_the_transfer_matrix() -> None:
    """The unaware attacks of a defended model would be averaged with transfer's own, of all models."""
    unaware = {"source": "a", "attack": "pgd(restarts=1)"}
    more = attacked(cell("transfer", model="b", chosen=unaware), [None] * 4)
    (table,), (with_more,) = transfers(outcomes(*crossed())), transfers(outcomes(*crossed(), more))
    assert with_more.frame.equals(table.frame)


@pytest.mark.parametrize("source", ["conv-small+adversarial-pgd", "conv-small+interval(eps=0.3,warm=0.1)"])
def test_the_sources_of_a_defended_model_keep_their_whole_name(source: str) -> None:
    one = attacked(cell("transfer", chosen={"source": source, "attack": "pgd"}), [0.1])
    (table,) = transfers(outcomes(one))
    assert table.frame["source"].tolist() == [source]


def test_threats_are_listed_once_in_order() -> None:
    frame = outcomes(
        attacked(cell("pgd", norm="l2", eps=1.0), [0.1]),
        attacked(cell("pgd", eps=0.3), [0.1]),
        attacked(cell("deepfool", eps=None), [0.1]),
        attacked(cell("pgd", eps=0.1), [0.1]),
        proved(cell("ibp", eps=0.1, **PROOF), [False]),
    )
    assert threats(frame) == [("linf", 0.1), ("linf", 0.3), ("l2", 1.0)]


def everything() -> list[Record]:
    """A run with every kind of table, on random numbers whose sums depend on their order."""
    rng = np.random.default_rng(5)
    records = []
    for model, defense in (("a", "none"), ("a", "polytope"), ("b", "none")):
        clean = (rng.random(40) < 0.9).tolist()
        for name, eps, norm in (("fgsm", 0.1, "linf"), ("pgd", 0.3, "linf"), ("deepfool", None, "l2")):
            reach = np.where(rng.random(40) < 0.5, None, rng.uniform(0.001, eps or 1, 40)).tolist()
            of = cell(name, model=model, defense=defense, eps=eps, norm=norm)
            records.append(attacked(of, reach, clean=clean))
        for source in ("a", "a+polytope", "b"):
            reach = np.where(rng.random(40) < 0.5, None, rng.uniform(0.001, 0.1, 40)).tolist()
            of = cell("transfer", model=model, defense=defense, chosen={"source": source})
            records.append(attacked(of, reach, clean=clean))
        of = cell("ibp", model=model, defense=defense, **PROOF)
        records.append(proved(of, (rng.random(40) < 0.2).tolist(), clean=clean))
    return records


def files(folder: Path, records: list[Record]) -> dict[str, bytes]:
    """The leaderboards of `records`, by file name."""
    write(all_tables(outcomes(*records)), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_records_are_the_same_files(tmp_path: Path) -> None:
    one = files(tmp_path / "one", everything())
    names = {name.rsplit(".", 1)[0] for name in one}
    assert names == {
        *("linf-0.1", "linf-0.3", "linf-0.1-judges", "linf-0.3-judges", "rho-adv", "transfer-linf-0.1"),
    }
    assert {name.rsplit(".", 1)[1] for name in one} == {"csv", "md", "html"}
    assert len(one) == 3 * len(names)
    assert files(tmp_path / "two", everything()) == one
    assert files(tmp_path / "one", everything()) == one


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_records_does_not_matter(seed: int, tmp_path: Path) -> None:
    shuffled = everything()
    random.Random(seed).shuffle(shuffled)
    assert files(tmp_path / "two", shuffled) == files(tmp_path / "one", everything())


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = files(tmp_path, everything())
    frame = bracket(outcomes(*everything()), "linf", 0.1).frame
    back = pd.read_csv(tmp_path / "linf-0.1.csv")
    pd.testing.assert_frame_equal(back, frame, rtol=1e-5)
    assert written["linf-0.1.html"].count(b"<tr") == len(frame) + 1
    text = written["linf-0.1.md"].decode()
    for row in frame.to_dict("records"):
        assert f"{100 * row['attacked']:.1f} %" in text
        assert f"{100 * row['gap']:.1f} %" in text


def test_tables_of_an_older_run_are_removed(tmp_path: Path) -> None:
    files(tmp_path, everything())
    left = files(tmp_path, [attacked(cell("pgd", norm="l2", eps=1.0), [0.5, None])])
    assert {name.rsplit(".", 1)[0] for name in left} == {"l2-1", "l2-1-judges"}


@pytest.mark.parametrize(
    "name",
    ["l2-0.5", "spatial-1-judges", "linf-0.0313725", "l1-1e-05", "transfer-l2-1.5", "defended-linf-0.3"],
)
def test_every_table_that_the_suite_names_is_removed(name: str, tmp_path: Path) -> None:
    others = ("rho-adv", "not-run", "corruption-error", "corruption-families")
    ours = [f"{one}.{suffix}" for one in (name, *others) for suffix in ("csv", "md", "html")]
    for file in ours:
        (tmp_path / file).write_text("older")
    assert not {*ours} & {*files(tmp_path, [attacked(cell("pgd", norm="linf", eps=0.1), [0.05, None])])}


@pytest.mark.parametrize(
    "name",
    [
        "notes.md",
        "linf-0.3.png",
        "linf-0.3-mine.csv",
        "my-linf-0.3.csv",
        "linf.csv",
        "rho-adv.tex",
        ".keep",
        "linf-x.md",
    ],
)
def test_files_of_the_users_own_beside_the_tables_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    assert files(tmp_path, everything())[name] == b"mine"


def test_names_that_mean_something_in_html_are_escaped(tmp_path: Path) -> None:
    one = attacked(cell("pgd", model="<b>&net", eps=0.1), [0.05, None])
    page = files(tmp_path, [one])["linf-0.1.html"].decode()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;net" in page


def test_corruption_errors_by_hand() -> None:
    def one(family: str, severity: int, defense: str, distances: list[float | None]) -> Record:
        of = cell("corruptions", defense=defense, norm="corruption", eps=severity, chosen={"family": family})
        return attacked(of, distances)

    records = [
        one("fog", 1, "none", [None, None, None, 1]),
        one("fog", 5, "none", [None, 5, 5, 5]),
        one("jpeg", 1, "none", [None, None, None, None]),
        one("jpeg", 5, "none", [None, None, None, 5]),
        one("fog", 1, "hull", [None, None, None, None]),
        one("fog", 5, "hull", [None, None, 5, 5]),
        one("jpeg", 1, "hull", [None, None, None, None]),
        one("jpeg", 5, "hull", [None, None, None, None]),
    ]
    error, families = corruptions(outcomes(*records))
    rows = error.frame.set_index("defense")
    assert rows.loc["none", ["severity_1", "severity_5", "mean_error"]].tolist() == [0.875, 0.5, 5 / 16]
    assert rows.loc["hull", ["severity_1", "severity_5", "mean_error"]].tolist() == [1.0, 0.75, 2 / 16]
    assert rows["relative_error"].tolist() == pytest.approx([0.4, 1.0])
    fog = families.frame.set_index(["defense", "family"]).loc[("none", "fog")]
    assert fog[["severity_1", "severity_5"]].tolist() == [0.75, 0.25]
    assert corruptions(outcomes(attacked(cell("pgd"), [0.1]))) == []


def test_threats_that_are_no_ball_have_a_bracket_from_zero() -> None:
    of = cell("corruptions", norm="corruption", eps=3, chosen={"family": "fog"})
    worse = cell("corruptions", norm="corruption", eps=3, chosen={"family": "jpeg"})
    frame = outcomes(attacked(of, [None, None, 3, None]), attacked(worse, [None, 3, None, None]))
    assert threats(frame) == [("corruption", 3)]
    table = bracket(frame, "corruption", 3)
    assert table.frame[["attacked", "certified"]].to_numpy().tolist() == [[0.5, 0.0]]
    assert table.frame["best_certificate"].tolist() == ["-"]
    assert "severity <= 3" in table.caption
