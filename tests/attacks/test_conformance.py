"""This suite passes every closed-form case of the conformance table, and the page says so."""

from __future__ import annotations

import re

import pytest

from tests.attacks.conformance import CASES, KINDS, PAGE, Case, Kind, verdict


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_ours_pass(kind: Kind, case: Case) -> None:
    assert verdict("Rhobust", kind, case) == "yes"


def test_a_wrong_answer_does_not_pass() -> None:
    """Points that do not move, move too far or leave the box, in place of an attack's."""
    for kind in KINDS:
        assert CASES[0](kind, lambda net, x, y, box, eps: x) != ""
        assert CASES[0](kind, lambda net, x, y, box, eps: 1 - x) != ""
        assert CASES[0](kind, lambda net, x, y, box, eps: x + 2) == "leaves the box"


def test_the_page_has_every_case() -> None:
    rows = re.findall(
        r"^\| ([a-z0-9 ]+) \| ([a-z ]+) \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    found = [(kind, case, ours) for kind, case, ours in rows if kind not in ("attack", "passed")]
    wanted = [(kind.title, case.__name__.replace("_", " "), "yes") for kind in KINDS for case in CASES]
    assert found == wanted
