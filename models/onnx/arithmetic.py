"""ONNX operators entry by entry: sums, products, comparisons, activations."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.shapes import broadcast

PAIRS: dict[str, Callable[..., Any]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Div": python.truediv,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Equal": torch.eq,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
# Those that PyTorch applies to numbers too; the others need tensors.
NUMBERS = {"Add", "Sub", "Mul", "Div"}
# Those without a rule among the certificates' are refused there, by name; attacks run on them.
UNARY: dict[str, Callable[..., Tensor]] = {
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Neg": python.neg,
    "Abs": torch.abs,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Erf": torch.erf,
    "Atan": torch.atan,
    "Asinh": torch.asinh,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atanh": torch.atanh,
    "Acosh": torch.acosh,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
}
# What exporters write where there is no bound: the largest float32.
UNBOUNDED = 3.4e38
# How far a sixth in single precision may be from one.
SIXTH = 1e-8


def fit(conversion: Conversion, constant: np.ndarray, value: Symbol) -> Tensor | float:
    """A constant as it broadcasts to one sample of `value`; one that would enlarge it is refused."""
    if constant.size == 1 and constant.ndim <= len(value.shape):
        return float(constant.reshape(()))
    tensor = conversion.tensor(constant)
    if value.batched and tensor.dim() == len(value.shape) and tensor.shape[0] == 1:
        tensor = tensor[0]
    rest = value.example.shape[1:]
    try:
        fits = torch.broadcast_shapes(tensor.shape, rest) == rest
    except RuntimeError:
        fits = False
    if not fits:
        conversion.refuse(f"combines shapes {value.shape} and {constant.shape}, which is not understood")
    return tensor


def aligned(conversion: Conversion, values: list[Symbol], inner: int = 0) -> list[Symbol]:
    """Values whose ONNX shapes broadcast, with as many axes each, the samples at the same place.

    The last `inner` axes are left alone.
    """
    rank = max(len(value.shape) for value in values)
    shapes = [(*[1] * (rank - len(value.shape)), *value.shape) for value in values]
    try:
        outer = np.broadcast_shapes(*(shape[: rank - inner] for shape in shapes))
    except ValueError:
        named = " and ".join(str(value.shape) for value in values)
        conversion.refuse(f"combines values of shapes {named}, which do not broadcast")
    batched = outer[:1] == (1,) and any(value.batched and len(value.shape) == rank for value in values)
    found = []
    for value, shape in zip(values, shapes, strict=True):
        rest = shape[1:] if batched else shape
        if rest == tuple(value.example.shape[1:]):
            found.append(Symbol(value.node, value.example, batched))
        else:
            found.append(conversion.call(torch.reshape, value, (-1, *rest), batched=batched))
    return found


def _of_two(conversion: Conversion, name: str, first: Symbol, second: Symbol) -> Symbol:
    """One of PAIRS on two values whose shapes broadcast."""
    if name == "Mul" and (first.node, first.shape) == (second.node, second.shape):
        # Certificates bound a square, but no product.
        return conversion.call(torch.square, first)
    first, second = aligned(conversion, [first, second])
    if name in ("Add", "Sub", "Max", "Min"):
        # Certificates add values of equal shape; products they refuse anyway.
        rest = torch.broadcast_shapes(first.example.shape, second.example.shape)[1:]
        first, second = (
            value
            if value.example.shape[1:] == rest
            else conversion.call(torch.broadcast_to, value, (-1, *rest))
            for value in (first, second)
        )
    if name in ("Max", "Min"):
        sign = 1 if name == "Max" else -1
        more = conversion.call(python.sub, *((first, second) if sign > 0 else (second, first)))
        return conversion.call(PAIRS["Add" if sign > 0 else "Sub"], second, conversion.call(F.relu, more))
    return conversion.call(PAIRS[name], first, second)


def combine(conversion: Conversion, name: str, first: Known, second: Known) -> Symbol:
    """One of PAIRS on two values whose shapes broadcast, or on a value and a constant."""
    if isinstance(first, Symbol) and isinstance(second, Symbol):
        return _of_two(conversion, name, first, second)
    value, constant = (first, second) if isinstance(first, Symbol) else (second, first)
    assert isinstance(value, Symbol)
    if not isinstance(constant, np.ndarray):
        conversion.refuse("lacks an input")
    try:
        value = broadcast(conversion, value, np.broadcast_shapes(value.shape, constant.shape))
    except ValueError:
        conversion.refuse(f"combines shapes {value.shape} and {constant.shape}, which do not broadcast")
    fitted = fit(conversion, constant, value)
    if name not in NUMBERS:
        fitted = torch.as_tensor(fitted, dtype=conversion.dtype)
    if name in ("Max", "Min") or isinstance(first, Symbol):
        return conversion.call(PAIRS[name], value, fitted)
    return conversion.call(PAIRS[name], fitted, value)


@operator(*PAIRS, "Sum", "Mean")
def pairwise(conversion: Conversion) -> Known:
    """Add, Sub, Mul, Div and comparisons of two inputs, and Sum, Mean, Max, Min of any number."""
    kind = conversion.current.op_type
    name = "Add" if kind in ("Sum", "Mean") else kind
    result = conversion.input(0)
    for place in range(1, len(conversion.current.input)):
        other = conversion.input(place)
        if isinstance(result, np.ndarray) and isinstance(other, np.ndarray):
            known = {"Add": np.add, "Max": np.maximum, "Min": np.minimum}
            result = known[name](result, other)
        else:
            result = combine(conversion, name, result, other)
    if kind == "Mean":
        return combine(conversion, "Div", result, np.array(float(len(conversion.current.input))))
    return result


@operator(*UNARY)
def unary(conversion: Conversion) -> Known:
    """A function of each entry without settings."""
    return conversion.call(UNARY[conversion.current.op_type], conversion.symbol())


@operator("Tan")
def tangent(conversion: Conversion) -> Known:
    """sin(z) / cos(z)."""
    value = conversion.symbol()
    return conversion.call(
        python.truediv, conversion.call(torch.sin, value), conversion.call(torch.cos, value)
    )


@operator("Swish")
def swish(conversion: Conversion) -> Known:
    """z sigmoid(alpha z)."""
    value, alpha = conversion.symbol(), float(conversion.attribute("alpha", 1.0))
    gate = value if alpha == 1 else conversion.call(python.mul, value, alpha)
    return conversion.call(python.mul, value, conversion.call(torch.sigmoid, gate))


@operator("LeakyRelu")
def leaky_relu(conversion: Conversion) -> Known:
    """max(z, alpha z)."""
    return conversion.call(F.leaky_relu, conversion.symbol(), float(conversion.attribute("alpha", 0.01)))


@operator("ThresholdedRelu")
def thresholded_relu(conversion: Conversion) -> Known:
    """z above alpha and 0 elsewhere: the ReLU where alpha is 0, else a jump that certificates refuse."""
    alpha = float(conversion.attribute("alpha", 1.0))
    return conversion.call(torch.threshold, conversion.symbol(), alpha, 0.0)


@operator("Shrink")
def shrink(conversion: Conversion) -> Known:
    """0 within lambd of 0; beyond, z moved by bias = lambd towards 0, or z itself, which jumps."""
    threshold = float(conversion.attribute("lambd", 0.5))
    bias = float(conversion.attribute("bias", 0.0))
    if threshold < 0 or bias not in (0.0, threshold):
        conversion.refuse(
            f"is understood with bias 0 or lambd >= 0, not bias {bias:g} and lambd {threshold:g}"
        )
    return conversion.call(F.softshrink if bias else F.hardshrink, conversion.symbol(), threshold)


@operator("PRelu")
def prelu(conversion: Conversion) -> Known:
    """z where it is positive, slope z elsewhere, with a slope for each entry that broadcasts."""
    slope, value = conversion.fixed(1), conversion.symbol()
    if np.unique(slope).size == 1:
        return conversion.call(F.leaky_relu, value, float(slope.flat[0]))
    rest = combine(conversion, "Mul", conversion.call(F.relu, value), 1 - slope)
    return combine(conversion, "Add", combine(conversion, "Mul", value, slope), rest)


@operator("Elu", "Celu", "Selu")
def exponential(conversion: Conversion) -> Known:
    """ELU, CELU, and SELU with its own constants."""
    value = conversion.symbol()
    if conversion.current.op_type != "Selu":
        function = F.elu if conversion.current.op_type == "Elu" else F.celu
        return conversion.call(function, value, float(conversion.attribute("alpha", 1.0)))
    if {"alpha", "gamma"} & {attribute.name for attribute in conversion.current.attribute}:
        conversion.refuse("has constants of its own, which is not understood")
    return conversion.call(F.selu, value)


@operator("Gelu")
def gelu(conversion: Conversion) -> Known:
    """z Phi(z) by the error function, or approximated by tanh."""
    how = str(conversion.attribute("approximate", "none"))
    return conversion.call(F.gelu, conversion.symbol(), approximate=how)


@operator("Clip")
def clip(conversion: Conversion) -> Known:
    """min(max(z, low), high)."""
    low, high = conversion.option("min", 1), conversion.option("max", 2)
    bounds = [None if bound is None else np.asarray(bound, dtype=np.float64).item() for bound in (low, high)]
    bounds = [None if bound is None or abs(bound) >= UNBOUNDED else bound for bound in bounds]
    value = conversion.symbol()
    return value if bounds == [None, None] else conversion.call(torch.clamp, value, *bounds)


@operator("HardSigmoid")
def hard_sigmoid(conversion: Conversion) -> Known:
    """min(max(alpha z + beta, 0), 1); PyTorch's own function has alpha 1 / 6."""
    alpha, beta = float(conversion.attribute("alpha", 0.2)), float(conversion.attribute("beta", 0.5))
    if abs(alpha - 1 / 6) < SIXTH and beta == 0.5:
        return conversion.call(F.hardsigmoid, conversion.symbol())
    scaled = conversion.call(python.mul, conversion.symbol(), alpha)
    shifted = conversion.call(python.add, scaled, beta)
    return conversion.call(torch.clamp, shifted, 0.0, 1.0)


@operator("Pow")
def power(conversion: Conversion) -> Known:
    """A constant power."""
    exponent = conversion.fixed(1)
    if exponent.size != 1:
        conversion.refuse("has more than one exponent, which is not understood")
    return conversion.call(torch.pow, conversion.symbol(), float(exponent.flat[0]))


@operator("Softmax", "LogSoftmax")
def softmax(conversion: Conversion) -> Known:
    """Softmax along one axis; older opsets mean all the axes from there on."""
    value = conversion.symbol()
    function = F.softmax if conversion.current.op_type == "Softmax" else F.log_softmax
    shape, old = value.shape, conversion.opsets.get("", 1) < 13
    axis = int(conversion.attribute("axis", 1 if old else -1))
    if old and axis not in (-1, len(shape) - 1):
        axis %= len(shape)
        flat = conversion.reshaped(value, (math.prod(shape[:axis]), math.prod(shape[axis:])))
        return conversion.reshaped(conversion.call(function, flat, flat.example.dim() - 1), shape)
    return conversion.call(function, value, conversion.dimension(value, axis))
