"""Einsum where it is a transposition or a matrix product; every other sum of products is refused."""

from __future__ import annotations

import numpy as np
import torch

from models.onnx.arithmetic import aligned
from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.layers import linear
from models.onnx.shapes import permuted


@operator("Einsum")
def einsum(conversion: Conversion) -> Known:
    """`abc->cab`, a constant matrix times one axis, or a product of two values `aij,ajk->aik`."""
    equation = str(conversion.attribute("equation")).replace(" ", "")
    sources, arrow, target = equation.partition("->")
    terms = sources.split(",")
    letters = [*terms, target]
    if not arrow or not all(len(set(term)) == len(term) and term.isalpha() for term in letters):
        return _refuse(conversion, equation)
    inputs = [conversion.input(place) for place in range(len(conversion.current.input))]
    if any(value is None or len(value.shape) != len(term) for value, term in zip(inputs, terms, strict=True)):
        return _refuse(conversion, equation)
    if len(terms) == 1 and sorted(sources) == sorted(target):
        return permuted(conversion, conversion.symbol(), [sources.index(letter) for letter in target])
    if len(terms) != 2:
        return _refuse(conversion, equation)
    if all(isinstance(value, Symbol) for value in inputs):
        return _of_values(conversion, equation, terms, target)
    place = 0 if isinstance(inputs[0], Symbol) else 1
    return _by_matrix(conversion, equation, (terms[place], terms[1 - place]), target, place)


def _refuse(conversion: Conversion, equation: str) -> Known:
    conversion.refuse(f"'{equation}' is understood as a transposition or a plain matrix product alone")


def _by_matrix(
    conversion: Conversion, equation: str, terms: tuple[str, str], target: str, place: int
) -> Known:
    """One axis of a value replaced by its product with a constant matrix, then the axes in any order."""
    term, fixed = terms
    summed, new = set(term) & set(fixed), set(fixed) - set(term)
    if len(fixed) != 2 or len(summed) != 1 or set(target) != (set(term) - summed) | new:
        return _refuse(conversion, equation)
    (inner,), (outer,) = summed, new
    value, matrix = conversion.symbol(place), conversion.fixed(1 - place)
    conversion.dimension(value, term.index(inner))
    rest = term.replace(inner, "")
    value = permuted(conversion, value, [term.index(letter) for letter in rest + inner])
    weights = conversion.tensor(matrix if fixed == outer + inner else np.ascontiguousarray(matrix.T))
    product = linear(conversion, weights, None, value)
    return permuted(conversion, product, [(rest + outer).index(letter) for letter in target])


def _of_values(conversion: Conversion, equation: str, terms: list[str], target: str) -> Known:
    """A matrix product of two values over their last two axes, all others shared."""
    first, second = terms
    if len(first) < 2 or target != first[:-1] + second[-1] or second != first[:-2] + first[-1] + target[-1]:
        return _refuse(conversion, equation)
    if target[-1] in first:
        return _refuse(conversion, equation)
    return conversion.call(
        torch.matmul, *aligned(conversion, [conversion.symbol(0), conversion.symbol(1)], inner=2)
    )
