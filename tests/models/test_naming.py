"""Zoo names: what is written is what is meant, and mistakes are named."""

from __future__ import annotations

import pytest

from models.errors import UserError
from models.naming import Term, read_terms

DEFAULTS = {"eps": 0.1, "steps": 10, "mode": "hard", "fast": False}


def test_terms_are_cut_outside_parentheses_only() -> None:
    first, second, third = read_terms("lenet + a(eps=1e+0, mode=x+y)+b")
    assert (str(first), str(third)) == ("lenet", "b")
    assert second == Term("a", (("eps", "1e+0"), ("mode", "x+y")))


def test_values_take_their_defaults_type_and_defaults_are_left_out() -> None:
    (term,) = read_terms("a(steps=5,eps=8/255,fast=True,mode=hard)")
    settled = term.settled("defence", DEFAULTS)
    assert settled.chosen == (("eps", 8 / 255), ("fast", True), ("steps", 5))
    assert read_terms("a(eps=0.10)")[0].settled("defence", DEFAULTS) == Term("a")


def test_a_canonical_name_reads_back_as_itself() -> None:
    (term,) = read_terms("a(eps=1/3,mode=soft,steps=7)")
    settled = term.settled("defence", DEFAULTS)
    assert read_terms(str(settled))[0].settled("defence", DEFAULTS) == settled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot read"),
        ("a++b", "cannot read ''"),
        ("a(eps=1", "parenthesis is missing"),
        ("a)b(", "parenthesis is missing"),
        ("a(eps)", "KEY=VALUE"),
        ("a(eps=)", "KEY=VALUE"),
        ("a(eps=1,eps=2)", "given twice"),
        ("a b", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")):
        read_terms(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a(ep=1)", "did you mean eps"),
        ("a(eps=big)", "is a number"),
        ("a(eps=-1)", "is a number from 0 up"),
        ("a(steps=1.5)", "whole number"),
        ("a(fast=1)", "true or false"),
    ],
)
def test_values_of_another_type_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_terms(text)[0].settled("defence", DEFAULTS)
