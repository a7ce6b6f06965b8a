"""Verdicts per sample, by hand: AND over attacks, OR over proofs, reuse across radii, contradictions."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from bench.outcomes import broken_at, certified_at, contradictions, gather, verdicts
from bench.record import Header, Record, empty_outcomes
from models.errors import UserError
from tests.bench.builders import attacked, cell, outcomes, proved

PROOF = {"kind": "certificate"}


def verdict(frame: pd.DataFrame, eps: float, norm: str = "linf") -> dict[str, list[bool]]:
    """The verdict columns of one defended model, in the order of the samples."""
    table = verdicts(frame, norm, eps)
    assert table["index"].is_monotonic_increasing
    return {name: table[name].tolist() for name in ("clean", "attacked", "certified")}


def test_gathered_rows_carry_their_cell() -> None:
    frame = outcomes(
        attacked(cell("pgd", chosen={"steps": 3}, defense="polytope"), [0.05]),
        attacked(cell("deepfool", eps=None, norm="l2"), [0.7]),
        proved(cell("ibp", eps=0.3, **PROOF), [True]),
    )
    assert frame["judge"].tolist() == ["pgd(steps=3)", "deepfool", "ibp"]
    assert frame["defended"].tolist() == ["lenet+polytope", "lenet", "lenet"]
    assert frame["kind"].tolist() == ["attack", "attack", "certificate"]
    assert frame["norm"].tolist() == ["linf", "l2", "linf"]
    np.testing.assert_array_equal(frame["eps"], [0.1, np.nan, 0.3])


def test_records_without_outcomes_are_left_out() -> None:
    failed = Record(Header(cell=cell(), status="failed", reason="broken"), empty_outcomes())
    skipped = Record(Header(cell=cell(), status="skipped", reason="no rule"), empty_outcomes())
    assert len(outcomes(failed, attacked(cell("pgd"), [None, None]), skipped)) == 2
    with pytest.raises(UserError, match="no finished cell"):
        gather([failed, skipped])


def test_a_sample_survives_only_if_it_survives_every_attack() -> None:
    """All eight ways in which three attacks can break a sample or not."""
    ways = list(itertools.product([True, False], repeat=3))
    records = [
        attacked(cell(name), [0.05 if way[number] else None for way in ways])
        for number, name in enumerate(("fgsm", "ifgsm", "pgd"))
    ]
    assert verdict(outcomes(*records), 0.1)["attacked"] == [any(way) for way in ways]


def test_a_sample_is_certified_if_any_certificate_proves_it() -> None:
    ways = list(itertools.product([True, False], repeat=3))
    records = [
        proved(cell(name, **PROOF), [way[number] for way in ways])
        for number, name in enumerate(("ibp", "crown", "lp"))
    ]
    assert verdict(outcomes(*records), 0.1)["certified"] == [any(way) for way in ways]


def test_a_clean_error_counts_as_attacked_at_every_radius() -> None:
    frame = outcomes(attacked(cell("pgd"), [None, None, 0.02], clean=[True, False, True]))
    for eps, last in ((0.1, True), (0.0, False)):
        assert verdict(frame, eps) == {
            "clean": [True, False, True],
            "attacked": [False, True, last],
            "certified": [False, False, False],
        }


def test_judges_on_fewer_images_leave_the_others_open() -> None:
    frame = outcomes(attacked(cell("fgsm"), [None] * 4), proved(cell("lp", **PROOF), [True, False]))
    assert verdict(frame, 0.1)["certified"] == [True, False, False, False]
    assert len(verdicts(frame, "linf", 0.1)) == 4


def test_an_attack_counts_wherever_its_distance_fits_whatever_radius_it_was_run_at() -> None:
    """Found at eps 0.3 within 0.1, found by a minimal attack, and exactly on the sphere."""
    above = float(np.nextafter(0.1, 1))
    frame = outcomes(
        attacked(cell("pgd", eps=0.3), [0.05, 0.2, None, None, None]),
        attacked(cell("deepfool", eps=None), [None, None, 0.1, above, None]),
    )
    assert verdict(frame, 0.1)["attacked"] == [True, False, True, False, False]
    assert verdict(frame, 0.3)["attacked"] == [True, True, True, True, False]


def test_a_proof_counts_at_every_smaller_radius_and_at_no_larger_one() -> None:
    frame = outcomes(
        proved(cell("ibp", eps=0.3, **PROOF), [True, False, False]),
        proved(cell("ibp", eps=0.1, **PROOF), [False, True, False]),
    )
    assert verdict(frame, 0.05)["certified"] == [True, True, False]
    assert verdict(frame, 0.1)["certified"] == [True, True, False]
    assert verdict(frame, 0.2)["certified"] == [True, False, False]
    assert verdict(frame, 0.3)["certified"] == [True, False, False]
    assert verdict(frame, 0.31)["certified"] == [False, False, False]


def test_accuracy_is_monotone_in_the_radius() -> None:
    rng = np.random.default_rng(3)
    records = []
    for name, eps in (("fgsm", 0.1), ("pgd", 0.3), ("deepfool", None)):
        reach = rng.uniform(0, eps or 1, 60)
        records.append(attacked(cell(name, eps=eps), np.where(rng.random(60) < 0.4, None, reach).tolist()))
    records += [proved(cell("ibp", eps=eps, **PROOF), (rng.random(60) < 0.3).tolist()) for eps in (0.1, 0.3)]
    frame, grid = outcomes(*records), np.linspace(0, 0.5, 21)
    broken = [sum(verdict(frame, eps)["attacked"]) for eps in grid]
    held = [sum(verdict(frame, eps)["certified"]) for eps in grid]
    assert broken == sorted(broken)
    assert held == sorted(held, reverse=True)
    assert broken[0] < broken[-1]
    assert held[0] > held[-1]


def test_norms_do_not_mix() -> None:
    frame = outcomes(
        attacked(cell("pgd"), [None]),
        attacked(cell("pgd", norm="l2", eps=0.1), [0.05]),
        proved(cell("ibp", norm="l2", eps=0.1, **PROOF), [True]),
    )
    assert verdict(frame, 0.1) == {"clean": [True], "attacked": [False], "certified": [False]}


def test_models_do_not_mix() -> None:
    frame = outcomes(
        attacked(cell("pgd"), [0.05]),
        attacked(cell("pgd", defense="polytope"), [None]),
        proved(cell("ibp", defense="polytope", **PROOF), [True]),
    )
    table = verdicts(frame, "linf", 0.1).set_index("defended")
    assert table["attacked"].to_dict() == {"lenet": True, "lenet+polytope": False}
    assert table["certified"].to_dict() == {"lenet": False, "lenet+polytope": True}
    assert contradictions(frame) == []


def test_an_attacks_rows_prove_nothing_and_a_proof_is_no_counterexample() -> None:
    attack = outcomes(attacked(cell("pgd"), [0.05, None])).assign(certified=True)
    assert not certified_at(attack, 0.1).any()
    assert not broken_at(outcomes(proved(cell("ibp", **PROOF), [True, False])), 0.1).any()


def test_a_complete_certificates_counterexample_breaks_as_an_attacks_does() -> None:
    rows = outcomes(proved(cell("exact", **PROOF), [False, False]))
    rows["success"], rows["distance"] = [True, False], [0.1, np.nan]
    assert broken_at(rows, 0.1).tolist() == [True, False]
    assert not broken_at(rows, 0.09).any()
    other = outcomes(proved(cell("ibp", **PROOF), [True, False]))
    assert len(contradictions(pd.concat([rows, other], ignore_index=True))) == 1


def test_a_planted_contradiction_is_named() -> None:
    frame = outcomes(
        attacked(cell("fgsm"), [None, None, None, None]),
        attacked(cell("pgd", eps=0.3), [0.2, 0.05, 0.1, 0.3]),
        proved(cell("ibp", **PROOF), [True, True, False, True]),
        proved(cell("crown", **PROOF), [True, False, False, False]),
    )
    (line,) = contradictions(frame)
    assert line == "sample 1 of mnist5k on lenet: 'ibp' certifies linf 0.1, but 'pgd' breaks it at 0.05"


def test_a_contradiction_on_the_sphere_itself_is_found() -> None:
    frame = outcomes(attacked(cell("deepfool", eps=None), [0.1]), proved(cell("ibp", **PROOF), [True]))
    assert len(contradictions(frame)) == 1
    beyond = float(np.nextafter(0.1, 1))
    frame = outcomes(attacked(cell("deepfool", eps=None), [beyond]), proved(cell("ibp", **PROOF), [True]))
    assert contradictions(frame) == []


def test_a_certified_clean_error_is_a_contradiction() -> None:
    """An attack's record holds a misclassified sample as broken at distance 0."""
    clean = [True, False]
    frame = outcomes(
        attacked(cell("pgd"), [None, None], clean=clean),
        proved(cell("ibp", **PROOF), [True, True], clean=clean),
    )
    (line,) = contradictions(frame)
    assert line.startswith("sample 1 ")


def test_a_certificate_that_proves_what_it_sees_misclassified_is_a_contradiction() -> None:
    """Also where no attack was run at all."""
    frame = outcomes(proved(cell("ibp", **PROOF), [True, True], clean=[True, False]))
    (line,) = contradictions(frame)
    assert "sample 1 of mnist5k on lenet" in line
    assert "'ibp'" in line


def test_every_contradiction_of_a_lying_certificate_is_found() -> None:
    """Brute force over random outcomes: each (proof, attack) pair with distance <= eps, and no other."""
    rng = np.random.default_rng(0)
    records = []
    for eps in (0.1, 0.2, 0.3):
        reach = rng.uniform(0, eps, 30)
        records.append(attacked(cell("pgd", eps=eps), np.where(rng.random(30) < 0.5, None, reach).tolist()))
        records.append(proved(cell("liar", eps=eps, **PROOF), (rng.random(30) < 0.5).tolist()))
    expected = 0
    for attack, proof in itertools.product(records[::2], records[1::2]):
        for row in range(30):
            reached = attack.outcomes["distance"][row]
            expected += bool(proof.outcomes["certified"][row] and reached <= proof.cell.threat.eps)
    assert expected > 50
    assert len(contradictions(outcomes(*records))) == expected
