"""Einsum of values and constants, as sums, products with matrices, and products of two values."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass

import numpy as np
import torch

from models.onnx.arithmetic import aligned, combine
from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.layers import linear
from models.onnx.shapes import permuted


@dataclass(frozen=True)
class _Operand:
    """A value or constant, with a letter for each axis."""

    letters: str
    value: Symbol | np.ndarray

    def sizes(self, letters: str) -> list[int]:
        """The sizes of the axes with these letters."""
        return [self.value.shape[self.letters.index(letter)] for letter in letters]


@operator("Einsum")
def einsum(conversion: Conversion) -> Known:
    """The inputs are joined one after the other, and what nothing else needs is summed at once."""
    operands, target = _operands(conversion)
    result, *others = operands
    while others:
        kept = target + "".join(other.letters for other in others[1:])
        result = _joined(conversion, result, others.pop(0), kept)
    result = _summed(conversion, result, target)
    if not isinstance(result.value, Symbol) or set(result.letters) != set(target):
        return _refuse(conversion)
    return permuted(conversion, result.value, [result.letters.index(letter) for letter in target])


def _refuse(conversion: Conversion) -> Known:
    equation = str(conversion.attribute("equation"))
    conversion.refuse(f"'{equation}' is not understood: name each axis of an input by a letter of its own")


def _operands(conversion: Conversion) -> tuple[list[_Operand], str]:
    """The inputs with the letters of their axes, and the letters of the result."""
    equation = str(conversion.attribute("equation")).replace(" ", "")
    sources, arrow, target = equation.partition("->")
    inputs = [conversion.input(place) for place in range(len(conversion.current.input))]
    # Axes behind dots are broadcast from the last, so that the last gets the last letter.
    spare = "".join(sorted(set(string.ascii_letters) - set(equation)))
    operands, dotted = [], ""
    for term, value in zip(sources.split(","), inputs, strict=True):
        if value is None:
            conversion.refuse("lacks an input")
        count = len(value.shape) - len(term.replace("...", ""))
        dots = spare[len(spare) - count :] if "..." in term and count else ""
        dotted = max(dotted, dots, key=len)
        operands.append(_Operand(term.replace("...", dots), value))
    if not arrow:
        target = "..." + "".join(sorted(x for x in set(sources) if x.isalpha() and sources.count(x) == 1))
    target = target.replace("...", dotted)
    sizes: dict[str, int] = {}
    for operand in operands:
        letters = operand.letters
        if len(set(letters)) != len(letters) or len(letters) != len(operand.value.shape):
            _refuse(conversion)
        if any(
            sizes.setdefault(x, size) != size for x, size in zip(letters, operand.value.shape, strict=True)
        ):
            _refuse(conversion)
    if len(set(target)) != len(target):
        _refuse(conversion)
    return operands, target


def _summed(conversion: Conversion, operand: _Operand, kept: str) -> _Operand:
    """The operand without the axes that are not kept."""
    letters = "".join(letter for letter in operand.letters if letter in kept)
    gone = [place for place, letter in enumerate(operand.letters) if letter not in kept]
    value = operand.value
    if isinstance(value, np.ndarray):
        return _Operand(letters, value.sum(tuple(gone)))
    long = [place for place in gone if value.shape[place] > 1]
    if long:
        value = conversion.call(
            torch.sum, value, tuple(conversion.dimension(value, place) for place in long), True
        )
    return _Operand(letters, conversion.reshaped(value, operand.sizes(letters)) if gone else value)


def _order(operand: _Operand, groups: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """The axes in the order of the groups, and a shape in which every group but the first is one axis."""
    shape = operand.sizes(groups[0]) + [math.prod(operand.sizes(group)) for group in groups[1:]]
    return [operand.letters.index(letter) for letter in "".join(groups)], shape


def _value(conversion: Conversion, operand: _Operand, *groups: str) -> Symbol:
    assert isinstance(operand.value, Symbol)
    (order, shape), value = _order(operand, groups), operand.value
    if order != sorted(order):
        value = permuted(conversion, value, order)
    return conversion.reshaped(value, shape)


def _constant(operand: _Operand, *groups: str) -> np.ndarray:
    assert isinstance(operand.value, np.ndarray)
    order, shape = _order(operand, groups)
    return operand.value.transpose(order).reshape(shape)


def _joined(conversion: Conversion, first: _Operand, second: _Operand, kept: str) -> _Operand:
    """The product of two operands, summed over the axes that are not kept."""
    first = _summed(conversion, first, kept + second.letters)
    second = _summed(conversion, second, kept + first.letters)
    if isinstance(first.value, np.ndarray):
        first, second = second, first
    shared = [letter for letter in first.letters if letter in second.letters]
    beside = "".join(letter for letter in shared if letter in kept)
    inner = "".join(letter for letter in shared if letter not in kept)
    own, other = (
        "".join(letter for letter in one.letters if letter not in shared) for one in (first, second)
    )
    letters = beside + own + other
    sizes = first.sizes(beside + own) + second.sizes(other)
    if isinstance(first.value, np.ndarray):
        subscripts = f"{first.letters},{second.letters}->{letters}"
        return _Operand(letters, np.einsum(subscripts, first.value, np.asarray(second.value)))
    if isinstance(second.value, Symbol):
        left = _value(conversion, first, beside, own, inner)
        right = _value(conversion, second, beside, inner, other)
        product = conversion.call(torch.matmul, *aligned(conversion, [left, right], inner=2))
    elif beside:
        left = _value(conversion, first, beside, own, "", inner)
        product = combine(conversion, "Mul", left, _constant(second, beside, "", other, inner))
        axes = (conversion.dimension(product, len(product.shape) - 1),)
        product = conversion.call(torch.sum, product, axes, False)
    else:
        left = _value(conversion, first, own, inner)
        weights = conversion.tensor(_constant(second, "", other, inner))
        product = linear(conversion, weights, None, left)
    return _Operand(letters, conversion.reshaped(product, sizes))
