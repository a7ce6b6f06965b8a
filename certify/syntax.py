"""The expressions of VNN-LIB: nested lists of tokens, polynomial terms, and formulas in disjunctive form."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from models.errors import UserError

# A comment ends where its line does, in old files at a carriage return alone.
TOKEN = re.compile(r";[^\n\r]*|[()]|\"[^\"\n]*\"|[^\s();]+|\n")

# How far, as a share of its largest term, the sum of a constraint may be above 0 by rounding.
ROUNDING = 1e-14

# More alternatives than any published benchmark has.
ALTERNATIVES = 200_000

Names = Mapping[str, str]
"""What each declared name stands for: input X_i or output Y_j."""


# VNN-LIB 2.0 writes ==, SMT-LIB and VNN-LIB 1.0 write =.
EQUAL = ("=", "==")


@dataclass(slots=True)
class Expression:
    """A token (`text`), or a list of `parts` that starts at the same place."""

    text: str
    line: int
    parts: Sequence[Expression] = ()

    def fail(self, reason: str) -> NoReturn:
        """Raises UserError that names line and token."""
        shown = f"({self.parts[0].text} ..." if self.parts and self.parts[0].text else self.text or "()"
        raise UserError(f"line {self.line}: '{shown}' {reason}")

    def head(self) -> Expression:
        """The word that a list starts with."""
        if self.text or not self.parts or not self.parts[0].text:
            self.fail("is not a list that starts with a word")
        return self.parts[0]

    def expect(self, count: int, form: str) -> None:
        """Refuses a list of another length."""
        if len(self.parts) != count:
            self.fail(f"has {len(self.parts) - 1} arguments: write {form}")


def expressions(text: str) -> Iterator[Expression]:
    """The lists at the top level of a text, in order."""
    line = 1
    stack: list[tuple[Expression, list[Expression]]] = []
    for match in TOKEN.finditer(text):
        token = match[0]
        if token == "(":
            parts: list[Expression] = []
            stack.append((Expression("", line, parts), parts))
        elif token == ")":
            if not stack:
                raise UserError(f"line {line}: ')' closes nothing")
            done = stack.pop()[0]
            if stack:
                stack[-1][1].append(done)
            else:
                yield done
        elif token == "\n":
            line += 1
        elif token[0] == ";":
            continue
        elif not stack:
            raise UserError(f"line {line}: '{token}' stands outside of any list")
        else:
            stack[-1][1].append(Expression(token, line))
    if stack:
        stack[-1][0].fail("is not closed at the end of the file")


@dataclass(frozen=True, slots=True)
class Linear:
    """sum of factors[name] * name + constant, at a line of the file; as a constraint it is <= 0, or < 0.

    A name is X_i, Y_j, or a product of such, written *X_0*Y_1 with its parts in order.
    """

    factors: dict[str, float]
    constant: float
    line: int
    strict: bool = False

    def bounds_an_input(self) -> bool:
        """Whether it speaks of one input and nothing else."""
        return len(self.factors) == 1 and next(iter(self.factors))[0] == "X"

    def names(self, letter: str) -> dict[int, float]:
        """The factors of the inputs "X" or the outputs "Y" by their number."""
        return {int(name[2:]): factor for name, factor in self.factors.items() if name[0] == letter}

    def products(self) -> list[str]:
        """The names of products among the factors."""
        return [name for name in self.factors if name[0] == "*"]

    def asks_of_outputs(self) -> bool:
        """Whether some output stands in it, alone or in a product."""
        return any("Y" in name for name in self.factors)

    def is_false(self) -> bool:
        """Whether it holds nowhere, since it speaks of numbers alone."""
        return not self.factors and (self.constant > 0 or (self.strict and self.constant == 0))

    def holds(self, point: dict[str, float]) -> bool:
        """Whether the constraint holds at a point; up to rounding where it is not strict."""
        parts = [self.constant, *(factor * _value(name, point) for name, factor in self.factors.items())]
        total = math.fsum(parts)
        return total < 0 if self.strict else total <= ROUNDING * max(map(abs, parts))

    def times(self, factor: float) -> Linear:
        """The same, multiplied by a number."""
        scaled = {name: factor * value for name, value in self.factors.items() if factor * value != 0}
        return Linear(scaled, factor * self.constant, self.line)

    def plus(self, other: Linear) -> Linear:
        """The sum of both, without names whose factor vanishes."""
        names = self.factors.keys() | other.factors.keys()
        sums = {name: self.factors.get(name, 0.0) + other.factors.get(name, 0.0) for name in sorted(names)}
        return Linear(
            {name: value for name, value in sums.items() if value}, self.constant + other.constant, self.line
        )

    def multiplied(self, other: Linear) -> Linear:
        """The product of both."""
        result = self.times(other.constant)
        for name, factor in other.factors.items():
            raised = {_product_of(name, mine): factor * value for mine, value in self.factors.items()}
            result = result.plus(Linear(raised, 0.0, self.line)).plus(
                Linear({name: factor * self.constant} if self.constant else {}, 0.0, self.line)
            )
        return result

    def substituted(self, known: Mapping[str, Linear]) -> Linear:
        """The same with terms in place of the names that are `known`."""
        if not any(part in known for name in self.factors for part in _parts(name)):
            return self
        result = Linear({}, self.constant, self.line)
        for name, factor in self.factors.items():
            term = Linear({}, factor, self.line)
            for part in _parts(name):
                term = term.multiplied(known.get(part) or Linear({part: 1.0}, 0.0, self.line))
            result = result.plus(term)
        return replace(result, strict=self.strict)


def _parts(name: str) -> list[str]:
    return name[1:].split("*") if name[0] == "*" else [name]


def _product_of(first: str, second: str) -> str:
    return "".join(f"*{part}" for part in sorted(_parts(first) + _parts(second)))


def _value(name: str, point: Mapping[str, float]) -> float:
    return math.prod(point[part] for part in _parts(name)) if name[0] == "*" else point[name]


def term_of(term: Expression, declared: Names) -> Linear:
    """A number, a name, or +, -, * of terms, or / by a number."""
    if term.text:
        if term.text in declared:
            return Linear({declared[term.text]: 1.0}, 0.0, term.line)
        return Linear({}, _number(term), term.line)
    word = term.head()
    parts = [term_of(part, declared) for part in term.parts[1:]]
    if word.text not in ("+", "-", "*", "/"):
        word.fail("is not understood in a term: use +, -, *, numbers and declared names")
    if not parts:
        term.fail("has no arguments")
    if word.text == "-" and len(parts) == 1:
        return parts[0].times(-1.0)
    result = parts[0]
    for place, part in enumerate(parts[1:], start=2):
        if word.text in "+-":
            result = result.plus(part if word.text == "+" else part.times(-1.0))
        elif word.text == "*":
            result = result.multiplied(part)
        elif word.text == "/" and not part.factors and part.constant:
            result = result.times(1 / part.constant)
        else:
            term.parts[place].fail("is not a number other than 0 to divide by")
    return result


def _number(token: Expression) -> float:
    try:
        value = float(token.text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in token.text:
        token.fail("is neither a number nor a declared name")
    return value


def constraints_of(formula: Expression, declared: Names) -> list[Linear]:
    """<=, >=, <, > or = of two or more terms, as terms that are <= 0, or < 0."""
    word = formula.head()
    if len(formula.parts) < 3:
        formula.fail(f"has {len(formula.parts) - 1} arguments: write ({word.text} TERM TERM)")
    strict = word.text in ("<", ">")
    if len(formula.parts) == 3 and word.text not in EQUAL:
        bound = _bound(formula, strict, declared)
        if bound is not None:
            return [bound]
    terms = [term_of(part, declared) for part in formula.parts[1:]]
    found = []
    for first, second in itertools.pairwise(terms):
        if word.text in ("<=", "<", *EQUAL):
            found.append(first.plus(second.times(-1.0)))
        if word.text in (">=", ">", *EQUAL):
            found.append(second.plus(first.times(-1.0)))
    return [replace(one, strict=strict) for one in found]


def _bound(formula: Expression, strict: bool, declared: Names) -> Linear | None:
    """An inequality of a name and a number, as most of a file's are, without the way through terms."""
    word, name, number = formula.parts
    side = 1.0 if word.text[0] == "<" else -1.0
    if number.text in declared:
        name, number, side = number, name, -side
    if name.text not in declared or not number.text or number.text in declared:
        return None
    return Linear({declared[name.text]: side}, 0.0 - side * _number(number), number.line, strict)


def disjuncts(formula: Expression, declared: Names) -> list[list[Linear]]:
    """A formula of and, or and inequalities as alternatives, each a list of constraints that all hold."""
    word = formula.head()
    if word.text in ("<=", ">=", "<", ">", *EQUAL):
        return [constraints_of(formula, declared)]
    if word.text == "!=":
        return _apart(formula, declared)
    if word.text not in ("and", "or"):
        word.fail("is not understood in a formula: use and, or, <=, >=, <, >, =")
    if len(formula.parts) < 2:
        formula.fail("has no arguments")
    parts = [disjuncts(part, declared) for part in formula.parts[1:]]
    if word.text == "or":
        return [alternative for part in parts for alternative in part]
    return _product(formula, parts)


def _apart(formula: Expression, declared: Names) -> list[list[Linear]]:
    """a != b: less, or more."""
    formula.expect(3, "(!= TERM TERM)")
    first, second = (term_of(part, declared) for part in formula.parts[1:])
    return [[replace(a.plus(b.times(-1.0)), strict=True)] for a, b in ((first, second), (second, first))]


def _product(formula: Expression, parts: Sequence[list[list[Linear]]]) -> list[list[Linear]]:
    if math.prod(len(part) for part in parts) > ALTERNATIVES:
        formula.fail(f"has more than {ALTERNATIVES} alternatives: split the property")
    return [list(itertools.chain.from_iterable(choice)) for choice in itertools.product(*parts)]
