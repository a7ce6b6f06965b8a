"""This suite passes every closed-form case of the conformance table, and the page says so."""

from __future__ import annotations

import re

import pytest

from tests.attacks.conformance import CASES, KINDS, PAGE, Case, entry, verdict
from tests.attacks.libraries import Kind

# These take seconds a case.
LONG = ("ead", "fab")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind.name in LONG else ()) for kind in KINDS],
    ids=lambda kind: kind.title,
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_ours_pass(kind: Kind, case: Case) -> None:
    assert verdict("Rhobust", kind, case) == "yes"


def test_a_wrong_answer_does_not_pass() -> None:
    """Points that do not move, move too far or leave the box, in place of an attack's."""
    for kind in KINDS:
        assert CASES[0](kind, lambda net, batch, box, eps: batch.x) != ""
        assert CASES[0](kind, lambda net, batch, box, eps: 1 - batch.x) != ""
        assert CASES[0](kind, lambda net, batch, box, eps: batch.x + 2) == "leaves the box"


def test_the_page_has_every_attack() -> None:
    rows = re.findall(r"^\| ([a-z0-9 -]+) \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = [(kind, ours) for kind, ours in rows if kind not in ("attack", "all that it has")]
    assert found == [(kind.title, f"{len(CASES)} of {len(CASES)}") for kind in KINDS]


def test_an_entry_says_what_is_wrong() -> None:
    assert entry({"a case": "yes", "another": "yes"}) == "2 of 2"
    assert entry({"a case": "yes", "another": "leaves the ball"}) == "1 of 2 (another: leaves the ball)"
    assert entry({"a case": "-", "another": "-"}) == "-"
