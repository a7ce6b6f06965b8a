"""Reads VNN-LIB 1.0 and 2.0: which outputs are unsafe for which inputs.

In 1.0 inputs X_i and outputs Y_j are declared as constants, in 2.0 networks with their tensors; assertions
join inequalities of polynomials by `and` and `or`. A strict inequality is proved as the closed one, whose
boundary counts as unsafe, since a bound of 0 in floating point may be one below 0: a tie stays unknown. A
counterexample has to satisfy it as it is.
Source: Demarchi, Guidotti, Pulina, Tacchella 2023, "Supporting standardization of neural networks
verification with VNN-LIB and CoCoNet"; the VNN-LIB 2.0 standard, chapter 2, for which see vnnlib.org.
"""

from __future__ import annotations

import gc
import gzip
import itertools
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from certify.declarations import Declarations, Network, count, numbered, with_whole_elements
from certify.input_bounds import Given, InputBounds
from certify.property import Clause, Property
from certify.syntax import ALTERNATIVES, Expression, Linear, disjuncts, expressions
from certify.unsafe_terms import Terms
from models.errors import UserError


@dataclass(frozen=True)
class Specification:
    """What a file declares and asserts: broken where one of the properties is.

    The inputs of all its networks stand in one row, X (inputs,), their hidden values and outputs in another,
    Y (outputs,). Properties bound the inputs that no equality gives by others, X = given(free), and have
    clauses over (outputs + m + p,): behind the outputs stand m sums of free inputs, rows of `sums` (m, free),
    and p `products` of free inputs and outputs, by their places in [free, outputs]. `assertions` are the
    file's own, of X and Y: each asks for all of one of its alternatives.
    """

    version: int
    networks: tuple[Network, ...]
    properties: tuple[Property, ...]
    sums: Tensor
    products: tuple[tuple[int, ...], ...]
    given: Given
    assertions: tuple[list[list[Linear]], ...]

    @property
    def inputs(self) -> int:
        return sum(variable.size for network in self.networks for variable in network.of("input"))

    @property
    def outputs(self) -> int:
        return sum(variable.size for network in self.networks for variable in network.of("hidden", "output"))

    @property
    def has_terms(self) -> bool:
        """Whether the clauses speak of more than outputs."""
        return bool(len(self.sums) or self.products)

    def columns(self, free: Tensor, y: Tensor) -> Tensor:
        """What the clauses speak of (outputs + m + p,), at free inputs (free,) with outputs y (outputs,)."""
        every = torch.cat([free, y])
        products = [every[list(places)].prod()[None] for places in self.products]
        return torch.cat([y, self.sums @ free, *products])

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

    def witness(self, x: Tensor, y: Tensor) -> str:
        """Inputs x and outputs y as the file's version of VNN-LIB writes a counterexample."""
        rows = {"input": x.tolist(), "hidden": y.tolist(), "output": y.tolist()}
        if self.version == 1:
            values = [f"(X_{i} {value!r})" for i, value in enumerate(rows["input"])]
            values += [f"(Y_{j} {value!r})" for j, value in enumerate(rows["output"])]
            return "(" + "\n".join(values) + ")\n"
        lines = []
        for network in self.networks:
            for one in (*network.of("input"), *network.of("hidden"), *network.of("output")):
                lines.append(f"{one.name} {one.element} [{','.join(map(str, one.shape))}]")
                lines += [repr(rows[one.role][place]) for place in one.places()]
        return "\n".join(lines) + "\n"


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
    declared: dict[str, str] = {}
    declarations = Declarations()
    alternatives: list[list[list[Linear]]] = []
    for command in expressions(text if "declare-network" not in text else with_whole_elements(text)):
        head = command.head()
        if head.text in ("declare-const", "declare-fun"):
            _declare(command, declared)
        elif head.text == "declare-network":
            declarations.declare(command)
        elif head.text == "vnnlib-version":
            _check_version(command)
        elif head.text == "assert":
            command.expect(2, "(assert FORMULA)")
            try:
                alternatives.append(disjuncts(command.parts[1], declarations.names or declared))
            except RecursionError:
                command.fail("is nested too deeply")
        elif head.text not in ("set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"):
            head.fail("is not understood: VNN-LIB has declare-network, declare-const and assert")
    if declared and declarations.networks:
        raise UserError("the file has declare-const and declare-network: declare all inputs in networks")
    if math.prod(len(choice) for choice in alternatives) > ALTERNATIVES:
        raise UserError(f"the assertions have more than {ALTERNATIVES} alternatives: split the property")
    networks = declarations.networks or [numbered(count([*declared], "X"), count([*declared], "Y"))]
    return _specified(2 if declarations.networks else 1, tuple(networks), alternatives)


def _specified(
    version: int, networks: tuple[Network, ...], assertions: list[list[list[Linear]]]
) -> Specification:
    names = [name for network in networks for one in network.of("input") for name in one.elements()]
    if version == 1:
        names = [f"X_{i}" for i in range(len(names))]
    given = Given.by(names, [one for choice in assertions if len(choice) == 1 for one in choice[0]])
    alternatives = [
        [[one.substituted(given.terms) for one in case] for case in choice] for choice in assertions
    ]
    shared = [constraint for choice in alternatives if len(choice) == 1 for constraint in choice[0]]
    several = [choice for choice in alternatives if len(choice) > 1]
    base = InputBounds(given.names)
    base.cut(shared)
    base.follow(shared)
    cases = (itertools.chain.from_iterable(case) for case in itertools.product(*several))
    every = [one for choice in alternatives for case in choice for one in case]
    outputs = sum(one.size for network in networks for one in network.of("hidden", "output"))
    terms = Terms.of(every, len(given.names), outputs)
    properties = _properties(base, shared, cases, terms)
    return Specification(
        version, networks, properties, terms.rows(), terms.products, given, tuple(assertions)
    )


def _check_version(command: Expression) -> None:
    command.expect(2, "(vnnlib-version <2.0>)")
    version = command.parts[1]
    if version.text.strip("<>").split(".")[0] not in ("1", "2"):
        version.fail("is no version that is understood: 1.0 and 2.0 are")


def _declare(command: Expression, declared: dict[str, str]) -> None:
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
    declared[name.text] = name.text


def _properties(
    base: InputBounds, shared: list[Linear], cases: Iterable[Iterable[Linear]], terms: Terms
) -> tuple[Property, ...]:
    """One property for each set of inputs, with a clause for each alternative on the outputs.

    Alternatives that no input or no output satisfies are left out.
    """
    found: dict[bytes, tuple[InputBounds, list[Clause]]] = {}
    common = [constraint for constraint in shared if not constraint.bounds_an_input()]
    for case in cases:
        constraints = list(case)
        box = base
        if any(constraint.bounds_an_input() for constraint in constraints):
            box = base.copy()
            box.cut(constraints)
            if box.empty():
                continue
        key = box.sealed()
        unsafe = common + [constraint for constraint in constraints if not constraint.bounds_an_input()]
        varying = [constraint for constraint in unsafe if constraint.factors]
        if any(constraint.is_false() for constraint in unsafe):
            continue
        if not any(constraint.asks_of_outputs() for constraint in varying):
            raise UserError("nothing is asserted of the outputs: every input would be unsafe")
        found.setdefault(key, (box, []))[1].append(terms.clause(varying))
    return tuple(Property(box.lower, box.upper, tuple(clauses)) for box, clauses in found.values())
