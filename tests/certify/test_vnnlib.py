"""VNN-LIB: what is read means what an evaluator of its own says, and comes back unchanged when written."""

from __future__ import annotations

import contextlib
import gc
import gzip
import operator
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

from certify.input_bounds import InputBounds
from certify.property import robustness
from certify.vnnlib import parse_vnnlib, read_vnnlib
from certify.vnnlib_text import format_vnnlib
from models.errors import UserError

DECLARED = "\n".join([f"(declare-const X_{i} Real)" for i in range(2)] + ["(declare-const Y_0 Real)"])
DECLARED += "\n(declare-const Y_1 Real)\n"
BOX = "".join(f"(assert (>= X_{i} 0))(assert (<= X_{i} 1.))\n" for i in range(2))


def parsed(text: str) -> object:
    """The assertions as nested lists, by a reader of its own."""
    stack: list[list] = [[]]
    for token in text.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return [part for part in stack[0] if part[0] == "assert"]


COMPARISONS = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}


def value(expression, point: dict[str, float]):
    """An expression at a point: a number, or whether a formula holds."""
    if isinstance(expression, str):
        return point[expression] if expression in point else float(expression)
    word, *rest = expression
    parts = [value(part, point) for part in rest]
    if word in ("and", "assert"):
        return all(parts)
    if word == "or":
        return any(parts)
    if word == "-" and len(parts) == 1:
        return -parts[0]
    if word in COMPARISONS:
        return COMPARISONS[word](*parts)
    return reduce({"+": operator.add, "-": operator.sub, "*": operator.mul}[word], parts)


def unsafe(specification, x: torch.Tensor, y: torch.Tensor) -> bool:
    """What is proved to be out of reach: the closed sets."""
    y = torch.cat([y, specification.sums @ x])
    return any(
        bool(((x >= one.lower) & (x <= one.upper)).all()) and float(one.excess(y[None])) <= 0
        for one in specification.properties
    )


class Author:
    """Writes random formulas on a grid of halves, so that sums are exact and ties happen."""

    def __init__(self, seed: int, letters: str = "Y") -> None:
        self.random, self.letters = np.random.default_rng(seed), list(letters)

    def number(self) -> str:
        half = int(self.random.integers(-4, 5)) / 2
        return str(self.random.choice([repr(half), f"{half:+.1e}".replace("+", "", 1).replace("e+", "e")]))

    def term(self, depth: int) -> str:
        kind = self.random.integers(5) if depth else self.random.integers(2)
        if kind == 0:
            return self.number()
        if kind == 1:
            return f"{self.random.choice(self.letters)}_{self.random.integers(2)}"
        if kind == 2:
            return f"(* {self.number()} {self.term(depth - 1)})"
        if kind == 3:
            return f"(- {self.term(depth - 1)})"
        return f"({self.random.choice(['+', '-'])} {self.term(depth - 1)} {self.term(depth - 1)})"

    def formula(self, depth: int) -> str:
        kind = self.random.integers(4) if depth else 3
        if kind < 2:
            word = "and" if kind else "or"
            return f"({word} {' '.join(self.formula(depth - 1) for _ in range(self.random.integers(1, 4)))})"
        if kind == 2:
            word = self.random.choice(["<=", ">="])
            bound = f"({word} X_{self.random.integers(2)} {self.random.integers(0, 3) / 2})"
            return f"(and {bound} {self.formula(0)})"
        word = self.random.choice(["<=", ">=", "<", ">"])
        return f"({word} {self.term(2)} Y_{self.random.integers(2)})"


def read_unless_trivial(text: str):
    """The specification, or None where a formula such as Y_0 <= Y_0 says nothing of the outputs."""
    try:
        return parse_vnnlib(text)
    except UserError as refusal:
        if "nothing is asserted" in str(refusal) or "above its upper bound" in str(refusal):
            return None
        raise


def test_random_properties_mean_what_their_text_says() -> None:
    """Sums of inputs and mixed with outputs too; what holds is inside the closed sets, else on their edge."""
    points, held, compared, edges = 0, 0, 0, 0
    for seed in range(200):
        author = Author(seed, "XY" if seed % 3 == 0 else "Y")
        text = DECLARED + BOX + "".join(f"(assert {author.formula(3)})\n" for _ in range(seed % 2 + 1))
        specification = read_unless_trivial(text)
        if specification is None:
            continue
        compared += 1
        assertions = parsed(text)
        draw = author.random.integers(-2, 4, (60, 4)) / 2
        for row in draw:
            point = dict(zip(("X_0", "X_1", "Y_0", "Y_1"), row.tolist(), strict=True))
            expected = all(value(part, point) for part in assertions)
            x, y = torch.tensor(row[:2]), torch.tensor(row[2:])
            assert specification.holds(x, y) == expected, text
            closed = unsafe(specification, x, y)
            assert closed >= expected, text
            assert closed == expected or specification.strict, text
            points, held, edges = points + 1, held + expected, edges + (closed != expected)
    assert compared > 120
    assert 0 < edges < held
    assert 0.02 < held / points < 0.9


def equal(first, second) -> bool:
    if not (torch.equal(first.lower, second.lower) and torch.equal(first.upper, second.upper)):
        return False
    pairs = zip(first.clauses, second.clauses, strict=True)
    return all(torch.equal(a.rows, b.rows) and torch.equal(a.offsets, b.offsets) for a, b in pairs)


def test_what_is_written_is_read_back_without_any_difference() -> None:
    generator, compared = torch.Generator().manual_seed(0), 0
    for trial in range(20):
        low = torch.rand(6, generator=generator, dtype=torch.float64) * 10 ** (trial - 12)
        one = robustness(low, low * 1.1, trial % 4, 4)
        (back,) = parse_vnnlib(format_vnnlib([one])).properties
        assert equal(one, back)
        for seed in range(4):
            text = DECLARED + BOX + f"(assert {Author(100 * trial + seed).formula(2)})"
            again = read_unless_trivial(text)
            if again is not None and again.properties:
                back = parse_vnnlib(format_vnnlib(again.properties)).properties
                assert all(equal(a, b) for a, b in zip(again.properties, back, strict=True))
                compared += 1
    assert compared > 40


def test_inputs_inside_or_become_properties_of_their_own() -> None:
    low, high = "(>= X_0 0) (<= X_0 0.25)", "(>= X_0 .75) (<= X_0 1e0)"
    rest = "(assert (and (>= X_1 -.5) (<= X_1 0.5)))(assert (<= Y_0 Y_1))"
    text = DECLARED + f"(assert (or (and {low}) (and {high} (>= Y_0 3))))" + rest
    first, second = parse_vnnlib(text).properties
    assert (first.lower.tolist(), first.upper.tolist()) == ([0.0, -0.5], [0.25, 0.5])
    assert (second.lower.tolist(), second.upper.tolist()) == ([0.75, -0.5], [1.0, 0.5])
    assert [len(one.clauses[0].rows) for one in (first, second)] == [1, 2]


def test_a_robustness_property_has_one_clause_a_rival() -> None:
    rivals = "(assert (or (and (>= Y_0 Y_1)) (and (>= Y_0 5)))) ; closed"
    (one,) = parse_vnnlib(DECLARED + BOX + rivals).properties
    assert [clause.rows.tolist() for clause in one.clauses] == [[[-1.0, 1.0]], [[-1.0, 0.0]]]
    assert [clause.offsets.tolist() for clause in one.clauses] == [[0.0], [5.0]]


def test_many_assertions_are_read_in_time_that_grows_with_their_number() -> None:
    count = 6000
    lines = [f"(declare-const X_{i} Real)(assert (<= X_{i} 1))(assert (>= X_{i} 0))" for i in range(count)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(200)]
    lines.append(f"(assert (or {' '.join(f'(and (<= Y_0 Y_{j}))' for j in range(1, 200))}))")
    specification = parse_vnnlib("\n".join(lines))
    assert specification.inputs == count
    assert len(specification.properties[0].clauses) == 199


@pytest.mark.parametrize("collecting", [True, False])
def test_reading_leaves_the_garbage_collector_as_it_was(collecting: bool) -> None:
    (gc.enable if collecting else gc.disable)()
    try:
        for text in (DECLARED + BOX + "(assert (<= Y_0 1))", "(assert"):
            with contextlib.suppress(UserError):
                parse_vnnlib(text)
            assert gc.isenabled() == collecting
    finally:
        gc.enable()


SAFE = DECLARED + BOX
MISTAKES = {
    "open list": (SAFE + "(assert (<= Y_0 1)", "line 7: '(assert ...' is not closed"),
    "closed twice": (SAFE + "(assert (<= Y_0 1)))", "line 7: ')' closes nothing"),
    "outside": (SAFE + "assert", "line 7: 'assert' stands outside"),
    "unknown name": (
        SAFE + "(assert\n (<= Y_0 Y_7))",
        "line 8: 'Y_7' is neither a number nor a declared name",
    ),
    "no number": (SAFE + "(assert (<= Y_0 1.2.3))", "line 7: '1.2.3' is neither"),
    "infinity": (SAFE + "(assert (<= Y_0 inf))", "line 7: 'inf' is neither"),
    "unknown word": (SAFE + "(assert (=> Y_0 1))", "line 7: '=>' is not understood in a formula"),
    "unknown function": (SAFE + "(assert (<= (max Y_0 Y_1) 1))", "line 7: 'max' is not understood in a term"),
    "unknown command": ("(define-fun f)", "line 1: 'define-fun' is not understood"),
    "version": ("(vnnlib-version <3.0>)", "line 1: '<3.0>' is no version that is understood"),
    "quotient": (SAFE + "(assert (<= (/ Y_0 Y_1) 1))", "line 7: 'Y_1' is not a number other than 0"),
    "one side": (SAFE + "(assert (<= Y_0))", "line 7: '(<= ...' has 1 arguments: write (<= TERM TERM)"),
    "empty": (SAFE + "(assert (or))", "line 7: '(or ...' has no arguments"),
    "type": ("(declare-const X_0 Int)", "line 1: 'Int' is not understood as a type: use Real"),
    "name": ("(declare-const Z_0 Real)", "line 1: 'Z_0' is not understood as a name"),
    "padded name": ("(declare-const X_00 Real)", "line 1: 'X_00' is not understood as a name"),
    "twice": (DECLARED + "(declare-const X_0 Real)", "line 5: 'X_0' is declared twice"),
    "gap": ("(declare-const X_1 Real)(declare-const Y_0 Real)", "X_0 is not declared, but X_1 is"),
    "no outputs": ("(declare-const X_0 Real)", "no Y_0 is declared"),
    "unbounded": (
        DECLARED + "(assert (<= X_0 1))(assert (<= Y_0 1))",
        "X_0 has no lower bound: add (assert (>=",
    ),
    "crossed": (SAFE + "(assert (>= X_1 1.5))(assert (<= Y_0 1))", "X_1 has the lower bound 1.5 above"),
    "only inputs": (SAFE + "(assert (<= (+ X_0 X_1) 1))", "nothing is asserted of the outputs"),
    "nested": (
        SAFE + "(assert " + "(and " * 3000 + "(<= Y_0 1)" + ")" * 3001,
        "line 7: '(assert ...' is nested",
    ),
    "nothing": (SAFE, "nothing is asserted of the outputs"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_names_line_and_token(case: str) -> None:
    text, message = MISTAKES[case]
    with pytest.raises(UserError) as mistake:
        parse_vnnlib(text)
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_comment_ends_with_its_line_whatever_ends_that(end: str) -> None:
    text = SAFE + "; unsafe\n(assert (<= Y_0 1)) ; and\n(assert (<= Y_1 2))"
    assert equal(parse_vnnlib(text.replace("\n", end)).properties[0], parse_vnnlib(text).properties[0])


def test_files_plain_gzipped_absent_and_damaged(tmp_path: Path) -> None:
    text = SAFE + "(assert (<= Y_0 1))"
    (tmp_path / "p.vnnlib").write_text(text, encoding="utf-8")
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "marked.vnnlib").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_vnnlib(tmp_path / "marked.vnnlib").inputs == 2
    plain, packed = read_vnnlib(tmp_path / "p.vnnlib"), read_vnnlib(tmp_path / "p.vnnlib.gz")
    assert equal(plain.properties[0], packed.properties[0])
    (tmp_path / "cut.vnnlib.gz").write_bytes(gzip.compress(text.encode())[:-9])
    (tmp_path / "bad.vnnlib").write_text(text + ")", encoding="utf-8")
    for name in ("absent.vnnlib", "cut.vnnlib.gz", "bad.vnnlib"):
        with pytest.raises(UserError, match=name) as mistake:
            read_vnnlib(tmp_path / name)
        assert "\n" not in str(mistake.value)


def test_the_same_bounds_are_looked_through_once_however_many_clauses_there_are(monkeypatch) -> None:
    looked = []
    inner = InputBounds._check
    monkeypatch.setattr(InputBounds, "_check", lambda self: looked.append(1) or inner(self))
    cases = [f"(and (<= Y_0 {j}))" for j in range(50)] + ["(and (<= X_0 0.5) (<= Y_0 Y_1))"]
    first, second = parse_vnnlib(DECLARED + BOX + f"(assert (or {' '.join(cases)}))").properties
    assert (len(first.clauses), len(second.clauses), len(looked)) == (50, 1, 2)
