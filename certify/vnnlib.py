"""Reads and writes VNN-LIB 1.0: which outputs are unsafe for which inputs.

Inputs X_i and outputs Y_j are declared as constants; assertions join linear inequalities by `and`
and `or`. A strict inequality is proved as the closed one, whose boundary counts as unsafe, since a bound
of 0 in floating point may be one below 0: a tie stays unknown. A counterexample has to satisfy it as it is.
Source: Demarchi, Guidotti, Pulina, Tacchella 2023, "Supporting standardization of neural networks
verification with VNN-LIB and CoCoNet".
"""

from __future__ import annotations

import gc
import gzip
import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from certify.property import Clause, Property
from certify.syntax import ALTERNATIVES, Expression, Linear, disjuncts, expressions
from models.errors import UserError


@dataclass(frozen=True)
class Specification:
    """What a file declares and asserts: broken where one of the properties is.

    Every property has bounds of shape (inputs,) and clauses over (outputs + m,): behind the outputs stand
    the m sums of inputs, rows of `sums` (m, inputs), that constraints on several inputs or on inputs and
    outputs speak of. `assertions` are the file's own: each asks for all of one of its alternatives.
    """

    inputs: int
    outputs: int
    properties: tuple[Property, ...]
    sums: Tensor
    assertions: tuple[list[list[Linear]], ...]

    def holds(self, x: Tensor, y: Tensor) -> bool:
        """Whether inputs x (inputs,) with outputs y (outputs,) are what the assertions ask for."""
        point = {
            f"{letter}_{i}": v
            for letter, values in (("X", x), ("Y", y))
            for i, v in enumerate(values.tolist())
        }
        return all(
            any(all(constraint.holds(point) for constraint in case) for case in choice)
            for choice in self.assertions
        )

    @property
    def strict(self) -> bool:
        """Whether some inequality is strict."""
        return any(one.strict for choice in self.assertions for case in choice for one in case)


def read_vnnlib(path: Path) -> Specification:
    """The properties in a .vnnlib file or its .gz; raises UserError, naming line and token."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        return parse_vnnlib(text)
    except UserError as mistake:
        raise UserError(f"{path}: {mistake}") from None


def parse_vnnlib(text: str) -> Specification:
    """The properties in the text of a .vnnlib file."""
    # A file becomes a million small objects without a cycle, which the collector would go through for naught.
    collected = gc.isenabled()
    gc.disable()
    try:
        return _parsed(text)
    finally:
        if collected:
            gc.enable()


def _parsed(text: str) -> Specification:
    declared: dict[str, int] = {}
    alternatives: list[list[list[Linear]]] = []
    for command in expressions(text):
        head = command.head()
        if head.text in ("declare-const", "declare-fun"):
            _declare(command, declared)
        elif head.text == "assert":
            command.expect(2, "(assert FORMULA)")
            try:
                alternatives.append(disjuncts(command.parts[1], declared))
            except RecursionError:
                command.fail("is nested too deeply")
        elif head.text not in ("set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"):
            head.fail("is not understood: VNN-LIB 1.0 has declare-const and assert")
    inputs, outputs = _count(declared, "X"), _count(declared, "Y")
    if math.prod(len(choice) for choice in alternatives) > ALTERNATIVES:
        raise UserError(f"the assertions have more than {ALTERNATIVES} alternatives: split the property")
    shared = [constraint for choice in alternatives if len(choice) == 1 for constraint in choice[0]]
    several = [choice for choice in alternatives if len(choice) > 1]
    base = _Box(inputs)
    base.cut(shared)
    cases = (itertools.chain.from_iterable(case) for case in itertools.product(*several))
    sums = _sums(itertools.chain.from_iterable(itertools.chain.from_iterable(alternatives)))
    rows = torch.zeros(len(sums), inputs, dtype=torch.float64)
    for row, one in zip(rows, sums, strict=True):
        for place, factor in one:
            row[place] = factor
    properties = _properties(base, shared, cases, outputs, sums)
    return Specification(inputs, outputs, properties, rows, tuple(alternatives))


Sum = tuple[tuple[int, float], ...]


def _sums(constraints: Iterable[Linear]) -> dict[Sum, int]:
    """The sums of inputs that constraints other than bounds speak of, numbered."""
    found: dict[Sum, int] = {}
    for constraint in constraints:
        if not constraint.bounds_an_input() and (one := tuple(constraint.names("X").items())):
            found.setdefault(one, len(found))
    return found


def _declare(command: Expression, declared: dict[str, int]) -> None:
    function = command.head().text == "declare-fun"
    command.expect(4 if function else 3, "(declare-const X_0 Real)")
    name, kind = command.parts[1], command.parts[-1]
    if kind.text != "Real":
        kind.fail("is not understood as a type: use Real")
    number = name.text[2:]
    if name.text[:2] not in ("X_", "Y_") or not number.isdecimal() or number != str(int(number)):
        name.fail("is not understood as a name: inputs are X_0, X_1, ..., outputs Y_0, Y_1, ...")
    if name.text in declared:
        name.fail("is declared twice")
    declared[name.text] = name.line


def _count(declared: dict[str, int], letter: str) -> int:
    places = {int(name[2:]) for name in declared if name[0] == letter}
    if not places:
        raise UserError(f"no {letter}_0 is declared: inputs are X_0, X_1, ..., outputs Y_0, Y_1, ...")
    missing = min(set(range(len(places) + 1)) - places)
    if missing < len(places):
        raise UserError(f"{letter}_{missing} is not declared, but {letter}_{max(places)} is")
    return len(places)


class _Box:
    """Bounds on every input, from constraints on single inputs."""

    def __init__(self, inputs: int) -> None:
        self.lower = torch.full((inputs,), -torch.inf, dtype=torch.float64)
        self.upper = torch.full((inputs,), torch.inf, dtype=torch.float64)

    def copy(self) -> _Box:
        other = _Box(0)
        other.lower, other.upper = self.lower.clone(), self.upper.clone()
        return other

    def cut(self, constraints: Iterable[Linear]) -> None:
        """Applies the constraints on inputs, each a x + c <= 0 with one input x."""
        below, above = self.lower.numpy(), self.upper.numpy()
        for constraint in constraints:
            if not constraint.bounds_an_input():
                continue
            ((name, factor),) = constraint.factors.items()
            place = int(name[2:])
            edge = -constraint.constant / factor
            if factor > 0:
                above[place] = min(above[place], edge)
            else:
                below[place] = max(below[place], edge)

    def checked(self) -> None:
        """Raises UserError where an input has no bound, or its bounds cross."""
        for side, ends, sign in (("lower", self.lower, ">="), ("upper", self.upper, "<=")):
            open_ = (~torch.isfinite(ends)).nonzero().flatten()
            if len(open_):
                place = int(open_[0])
                raise UserError(f"X_{place} has no {side} bound: add (assert ({sign} X_{place} NUMBER))")
        if self.empty():
            place = int((self.lower > self.upper).nonzero()[0])
            low, high = float(self.lower[place]), float(self.upper[place])
            raise UserError(f"X_{place} has the lower bound {low:g} above its upper bound {high:g}")

    def empty(self) -> bool:
        """Whether no input satisfies the bounds."""
        return bool((self.lower > self.upper).any())


def _properties(
    base: _Box, shared: list[Linear], cases: Iterable[Iterable[Linear]], outputs: int, sums: dict[Sum, int]
) -> tuple[Property, ...]:
    """One property for each set of inputs, with a clause for each alternative on the outputs.

    Alternatives that no input or no output satisfies are left out.
    """
    found: dict[bytes, tuple[_Box, list[Clause]]] = {}
    common = [constraint for constraint in shared if not constraint.bounds_an_input()]
    for case in cases:
        constraints = list(case)
        box = base
        if any(constraint.bounds_an_input() for constraint in constraints):
            box = base.copy()
            box.cut(constraints)
        if box is not base and box.empty():
            continue
        box.checked()
        unsafe = common + [constraint for constraint in constraints if not constraint.bounds_an_input()]
        varying = [constraint for constraint in unsafe if constraint.factors]
        if any(constraint.is_false() for constraint in unsafe):
            continue
        if not any(constraint.names("Y") for constraint in varying):
            raise UserError("nothing is asserted of the outputs: every input would be unsafe")
        key = box.lower.numpy().tobytes() + box.upper.numpy().tobytes()
        found.setdefault(key, (box, []))[1].append(_clause(varying, outputs, sums))
    return tuple(Property(box.lower, box.upper, tuple(clauses)) for box, clauses in found.values())


def _clause(constraints: Sequence[Linear], outputs: int, sums: dict[Sum, int]) -> Clause:
    rows = torch.zeros(len(constraints), outputs + len(sums), dtype=torch.float64)
    for row, constraint in zip(rows, constraints, strict=True):
        for place, factor in constraint.names("Y").items():
            row[place] = factor
        if inputs := tuple(constraint.names("X").items()):
            row[outputs + sums[inputs]] = 1.0
    return Clause(
        rows, torch.tensor([constraint.constant for constraint in constraints], dtype=torch.float64)
    )


def format_vnnlib(properties: Sequence[Property]) -> str:
    """The text of a file with these properties, each number such that it is read back unchanged."""
    first = properties[0]
    outputs = first.clauses[0].rows.shape[1]
    lines = [f"(declare-const X_{i} Real)" for i in range(first.lower.numel())]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    if len(properties) == 1:
        lines += [f"(assert {bound})" for bound in _bounds(first)]
        lines.append(f"(assert (or {' '.join(f'(and {_atoms(clause)})' for clause in first.clauses)}))")
    else:
        cases = [
            f"  (and {' '.join(_bounds(one))} {_atoms(clause)})"
            for one in properties
            for clause in one.clauses
        ]
        lines += ["(assert (or", *cases, "))"]
    return "\n".join(lines) + "\n"


def _bounds(one: Property) -> list[str]:
    ends = zip(one.lower.flatten().tolist(), one.upper.flatten().tolist(), strict=True)
    return [
        part for i, (low, high) in enumerate(ends) for part in (f"(>= X_{i} {low!r})", f"(<= X_{i} {high!r})")
    ]


def _atoms(clause: Clause) -> str:
    return " ".join(
        _atom(row, offset) for row, offset in zip(clause.rows.tolist(), clause.offsets.tolist(), strict=True)
    )


def _atom(row: list[float], offset: float) -> str:
    factors = {j: factor for j, factor in enumerate(row) if factor}
    if sorted(factors.values()) == [-1.0, 1.0] and offset == 0:
        small, large = (next(j for j, factor in factors.items() if factor == sign) for sign in (1.0, -1.0))
        return f"(<= Y_{small} Y_{large})"
    terms = " ".join(f"(* {factor!r} Y_{j})" for j, factor in factors.items())
    return f"(<= (+ {terms} {offset!r}) 0.0)"
