"""A cell's identity: golden hashes, what changes it and what must not."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from bench.cell import Cell, Component, Threat
from bench.commands.run import Request
from bench.record import Header, Provenance
from models.eps import parse_eps
from models.errors import UserError
from tests.bench.builders import cell

PLAIN = cell("fgsm")
PARAMETERS = {"steps": 40, "relative_step": 0.1}
TUNED = cell("pgd", model="conv-small", defense="polytope", norm="l2", eps=0.5, chosen=PARAMETERS)
MINIMAL = cell("deepfool", eps=None, images=200, seed=7)


def test_golden_identities() -> None:
    """A change here orphans every stored record and baseline: raise SCHEME with it."""
    assert PLAIN.id == "c1-e282b3bbb40bd0bbb0e20d11"
    assert TUNED.id == "c1-f06ea7b7d26c546cc103ab02"
    assert MINIMAL.id == "c1-94fef1d22e876efc2378f996"


def test_golden_seeds() -> None:
    """A change here changes every random number of every cell."""
    assert PLAIN.random_seed == 36951538593250296
    assert TUNED.random_seed == 68156339594629245


def test_key_order_and_a_round_trip_through_json_do_not_matter() -> None:
    backwards = dict(reversed(PARAMETERS.items()))
    assert list(backwards) != list(PARAMETERS)
    judge = TUNED.judge.model_copy(update={"chosen": backwards})
    assert TUNED.model_copy(update={"judge": judge}).id == TUNED.id
    assert judge.label == TUNED.judge.label
    shuffled = dict(reversed(json.loads(TUNED.model_dump_json()).items()))
    assert Cell.model_validate(shuffled).id == TUNED.id


CHANGES = {
    "data": "mnist",
    "images": 5,
    "model": "conv-small",
    "defense": "adversarial-pgd",
    "weights": "fedcba9876543210",
    "judge": Component(kind="attack", name="ifgsm"),
    "threat": Threat(norm="linf", eps=0.3),
    "seed": 1,
}
JUDGES = [
    Component(kind="certificate", name="fgsm"),
    Component(kind="attack", name="fgsm", chosen={"steps": 1}),
    Component(kind="attack", name="fgsm", defaults={"steps": 1}),
    Component(kind="attack", name="fgsm", defaults={"steps": 2}),
]
MEANT = {"cell", "data", "seed"}
THREATS = [Threat(norm="linf", eps=None), Threat(norm="l2", eps=0.1), Threat(norm="linf", eps=0.1 + 1e-12)]


def test_every_field_changes_the_identity() -> None:
    assert set(CHANGES) == set(Cell.model_fields)
    cells = [PLAIN, *(PLAIN.model_copy(update={name: value}) for name, value in CHANGES.items())]
    cells += [PLAIN.model_copy(update={"judge": judge}) for judge in JUDGES]
    cells += [PLAIN.model_copy(update={"threat": threat}) for threat in THREATS]
    assert len({one.id for one in cells}) == len(cells) == 16


def test_device_workers_and_folders_are_no_part_of_it() -> None:
    knobs = {*Provenance.model_fields, *Header.model_fields, *Request.__dataclass_fields__} - MEANT
    assert knobs & set(Cell.model_fields) == set()
    assert {"device", "workers", "out", "data_root", "wall_seconds"} <= knobs


def test_a_radius_written_as_a_fraction_is_the_same_cell() -> None:
    eps = parse_eps("8/255")
    assert eps == float(Fraction(8, 255)) == 8 / 255
    written = [parse_eps(value) for value in ("8/255", " 16/510 ", 8 / 255)]
    assert len({cell(eps=one).id for one in written}) == 1
    assert parse_eps("0.1") == parse_eps(0.1) == parse_eps("1/10") == 0.1
    assert parse_eps(None) is None


@pytest.mark.parametrize("bad", ["-0.1", -0.1, "nan", float("nan"), "inf", float("inf"), "1/0", "much", ""])
def test_a_radius_that_is_none_is_refused(bad: str | float) -> None:
    with pytest.raises(UserError, match="eps") as refusal:
        parse_eps(bad)
    assert "\n" not in str(refusal.value)


def test_seeds_depend_on_what_is_judged_and_not_on_how_many() -> None:
    more = PLAIN.model_copy(update={"images": 4000})
    assert more.random_seed == PLAIN.random_seed
    assert more.id != PLAIN.id
    seeds = {one.random_seed for one in (PLAIN, TUNED, MINIMAL, cell("fgsm", seed=1), cell("fgsm", eps=0.2))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_labels_and_titles() -> None:
    assert PLAIN.title == "lenet | fgsm | linf-0.1 | 4 images"
    assert TUNED.title == "conv-small+polytope | pgd(relative_step=0.1, steps=40) | l2-0.5 | 4 images"
    assert MINIMAL.threat.label == "linf-minimal"
