"""What a VNN-LIB file declares: networks with their tensors, and what each name stands for."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from certify.syntax import Expression
from models.errors import UserError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
ELEMENT = re.compile(r"(\b[A-Za-z]\w*)?([ \t]*)\[([\d\s,]*)\]")
SHAPE = re.compile(r"\[((\d+,)*\d+)?\]")

# What ONNX calls types of elements.
KIND = re.compile(r"real|b?float\w+|u?int\d+|bool|string|complex\d+", re.IGNORECASE)

# Types whose arithmetic is proved as that of the real numbers, and those of inputs that do not vary.
ELEMENTS = (
    "real", "float16", "float32", "float64", "bfloat16",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip


@dataclass(frozen=True)
class Variable:
    """A tensor by the name that the file gives it: role "input", "hidden" or "output".

    Its elements, row by row, are the inputs X_first, X_(first + 1), ... of all networks together, or the
    outputs Y_first, ... where it is hidden or an output. `node` is its name in the ONNX file, where given.
    """

    name: str
    role: str
    element: str
    shape: tuple[int, ...]
    first: int
    node: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def places(self) -> range:
        """The numbers of its elements."""
        return range(self.first, self.first + self.size)

    def elements(self) -> Iterator[str]:
        """The names of its elements, in the order of their numbers."""
        if not self.shape:
            yield self.name
        for index in itertools.product(*map(range, self.shape)):
            if index:
                yield f"{self.name}[{','.join(map(str, index))}]"


@dataclass(frozen=True)
class Network:
    """A network by name; the same file as the network `equal_to`, where that is given."""

    name: str
    variables: tuple[Variable, ...]
    equal_to: str | None = None

    def of(self, *roles: str) -> tuple[Variable, ...]:
        """Its variables with one of these roles, in order."""
        return tuple(variable for variable in self.variables if variable.role in roles)


def with_whole_elements(text: str) -> str:
    """The text with every X [0, 1] and [0, 1] written as one word, on the lines they end on."""

    def whole(match: re.Match[str]) -> str:
        word, space, inside = match[1] or "", match[2], match[3]
        indices = f"[{','.join(re.findall(r'[0-9]+', inside))}]"
        if KIND.fullmatch(word) or not word:
            return "\n" * inside.count("\n") + word + (space or " ") + indices
        return "\n" * inside.count("\n") + word + (indices if indices != "[]" else "")

    return ELEMENT.sub(whole, text)


class Declarations:
    """The networks so far, and the element names of their variables."""

    def __init__(self) -> None:
        self.networks: list[Network] = []
        self.names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._counts = {"X": 0, "Y": 0}

    def declare(self, command: Expression) -> None:
        """Reads (declare-network NAME [(equal-to OTHER)] (declare-input ...) ... (declare-output ...))."""
        if len(command.parts) < 3:
            command.fail(
                "is no network: write (declare-network NAME (declare-input ...) (declare-output ...))"
            )
        name = self._new(command.parts[1])
        equal_to, variables = None, []
        for part in command.parts[2:]:
            word = part.head()
            if word.text in ("equal-to", "isomorphic-to"):
                part.expect(2, f"({word.text} NETWORK)")
                other = self._known(part.parts[1])
                # What is isomorphic has weights, and a file, of its own.
                equal_to = other if word.text == "equal-to" else None
            elif word.text in ("declare-input", "declare-hidden", "declare-output"):
                variables.append(self._variable(part, word.text.removeprefix("declare-")))
            else:
                word.fail("is not understood in a network: use declare-input, declare-hidden, declare-output")
        for role in ("input", "output"):
            if not any(variable.role == role for variable in variables):
                command.fail(f"declares no {role}: add (declare-{role} NAME Real [SIZES])")
        network = Network(name, tuple(variables), equal_to)
        self._check_nodes(command, network)
        self.networks.append(network)

    def _variable(self, part: Expression, role: str) -> Variable:
        form = f"(declare-{role} NAME Real [SIZES]{' NODE' if role == 'hidden' else ''})"
        if len(part.parts) not in ((5,) if role == "hidden" else (4, 5)):
            part.fail(f"has {len(part.parts) - 1} arguments: write {form}")
        name, element, shape = part.parts[1:4]
        if element.text.lower() not in ELEMENTS:
            element.fail(f"is not understood as a type: use {', '.join(ELEMENTS)}")
        sizes = SHAPE.fullmatch(shape.text)
        if sizes is None:
            shape.fail("is no shape: write [SIZES], as [1,10]")
        letter = "X" if role == "input" else "Y"
        node = part.parts[4].text.strip('"') if len(part.parts) == 5 else None
        variable = Variable(
            self._new(name),
            role,
            element.text,
            tuple(map(int, re.findall(r"\d+", sizes[0]))),
            self._counts[letter],
            node,
        )
        if not variable.size:
            shape.fail("holds no elements: give sizes above 0")
        self._counts[letter] += variable.size
        for name_of, place in zip(variable.elements(), variable.places(), strict=True):
            self.names[name_of] = f"{letter}_{place}"
        return variable

    def _new(self, token: Expression) -> str:
        if not NAME.fullmatch(token.text):
            token.fail("is no name: start with a letter, go on with letters, digits and _")
        if token.text in self._taken:
            token.fail("is declared twice")
        self._taken.add(token.text)
        return token.text

    def _known(self, token: Expression) -> str:
        if not any(network.name == token.text for network in self.networks):
            token.fail("is no network declared before")
        return token.text

    def _check_nodes(self, command: Expression, network: Network) -> None:
        for role in ("input", "output"):
            given = {variable.node is None for variable in network.of(role)}
            if len(given) > 1:
                command.fail(f"names the ONNX node of some {role}s only: name all of them or none")


def numbered(inputs: int, outputs: int) -> Network:
    """The one network of VNN-LIB 1.0, which has no name: X_0, X_1, ... to Y_0, Y_1, ..."""
    given = (Variable("X", "input", "Real", (inputs,), 0), Variable("Y", "output", "Real", (outputs,), 0))
    return Network("", given)


def count(declared: Sequence[str], letter: str) -> int:
    """How many X_i or Y_j VNN-LIB 1.0 declares; raises UserError where one is left out."""
    places = {int(name[2:]) for name in declared if name[0] == letter}
    if not places:
        raise UserError(f"no {letter}_0 is declared: inputs are X_0, X_1, ..., outputs Y_0, Y_1, ...")
    missing = min(set(range(len(places) + 1)) - places)
    if missing < len(places):
        raise UserError(f"{letter}_{missing} is not declared, but {letter}_{max(places)} is")
    return len(places)
