"""Small ONNX files of layers between integers, made by hand: every setting that a quantiser may write."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.onnx_cases import JUMPING
from tests.models.onnx_files import File

RANDOM = np.random.default_rng(7)
MICROSOFT = "com.microsoft"


def drawn(*shape: int, kind: type = np.int8) -> np.ndarray:
    """Random integers of a type."""
    low, high = (-90, 90) if kind is np.int8 else (20, 230)
    return RANDOM.integers(low, high, shape).astype(kind)


class Levels(File):
    """A file whose input becomes levels of 0.01, and whose output becomes numbers again."""

    def __init__(self, *shape: int, kind: type = np.uint8, zero: int = 120) -> None:
        super().__init__(*shape)
        self.scale = 0.01
        self.pair = [self.constant(np.float32(0.01)), self.exact(zero, kind)]
        self.levels = self.add("QuantizeLinear", "x", *self.pair)

    def exact(self, value: Any, kind: type) -> str:
        """A constant of a type."""
        return self.constant(np.asarray(value), kind)

    def numbers(self, scale: float, zero: int, kind: type = np.uint8) -> Levels:
        """The last levels as numbers."""
        self.add("DequantizeLinear", self.last, self.constant(np.float32(scale)), self.exact(zero, kind))
        return self


def convolved(
    *shape: int,
    weight: tuple[int, ...],
    scales: Any = 0.004,
    zeros: Any = 0,
    kind: type = np.int8,
    bias: bool = True,
    **attributes: Any,
) -> Levels:
    """QLinearConv, its weights with a scale and a zero point or one a channel."""
    file = Levels(*shape)
    weights = file.exact(drawn(*weight, kind=kind), kind)
    more = [file.exact(RANDOM.integers(-9000, 9000, weight[0]), np.int32)] if bias else []
    file.add(
        "QLinearConv", file.levels, *file.pair, weights, file.constant(np.float32(scales)),
        file.exact(zeros, kind),
        file.constant(np.float32(0.023)), file.exact(131, np.uint8), *more, **attributes,
    )  # fmt: skip
    return file.numbers(0.023, 131)


def integer_convolution(point: int | None, **attributes: Any) -> Levels:
    """ConvInteger as the dynamic quantiser has it, but of a constant scale."""
    file = Levels(1, 2, 5, 4)
    zero = [] if point is None else [file.pair[1], file.exact(point, np.uint8)]
    weights = file.exact(drawn(3, 2, 3, 2, kind=np.uint8), np.uint8)
    file.add("Cast", file.add("ConvInteger", file.levels, weights, *zero, **attributes), to=1)
    file.add("Mul", file.last, file.constant(np.float32(4e-5)))
    return file


def multiplied(shape: tuple[int, ...], matrix: tuple[int, ...], left: bool, scale: Any, zero: Any) -> Levels:
    """QLinearMatMul with a constant on one side."""
    file = Levels(*shape)
    kind = np.uint8 if left else np.int8
    weights = [
        file.exact(drawn(*matrix, kind=kind), kind),
        file.constant(np.float32(scale)),
        file.exact(zero, kind),
    ]
    value = [file.levels, *file.pair]
    first, second = (weights, value) if left else (value, weights)
    file.add(
        "QLinearMatMul", *first, *second, file.constant(np.float32(0.031)), file.exact(99, np.uint8)
    )  # fmt: skip
    return file.numbers(0.031, 99)


def of_values(by_range: bool) -> File:
    """MatMulInteger of a value with its transpose, of constant levels or by its own range."""
    file = File(1, 3, 4) if by_range else Levels(1, 3, 4)
    if isinstance(file, Levels):
        levels, scale, zero = file.levels, file.pair[0], file.pair[1]
    else:
        levels = file.add("DynamicQuantizeLinear", "x", outputs=3)
        scale, zero = f"{levels[:-1]}1", f"{levels[:-1]}2"
    turned = file.add("Transpose", levels, perm=[0, 2, 1])
    file.add("Cast", file.add("MatMulInteger", levels, turned, zero, zero), to=1)
    file.add("Mul", file.last, file.add("Mul", scale, scale))
    return file


def ranged(times: float, plus: float) -> File:
    """All that DynamicQuantizeLinear makes of a value moved to one side of 0, or onto it."""
    file = File(1, 6)
    file.add("Add", file.add("Mul", "x", file.constant(times)), file.constant(plus))
    levels = file.add("DynamicQuantizeLinear", file.last, outputs=3)
    number, zero = (file.add("Cast", name, to=1) for name in (levels, f"{levels[:-1]}2"))
    file.add("Mul", file.add("Sub", number, zero), f"{levels[:-1]}1")
    return file


def gemm(alpha: float, rounded: bool, **attributes: Any) -> Levels:
    """QGemm with a bias."""
    file = Levels(1, 4)
    weights = drawn(3, 4) if attributes.get("transB") else drawn(4, 3)
    inputs = [
        file.levels, *file.pair, file.exact(weights, np.int8), file.constant(np.float32([0.01, 0.02, 0.015])),
        file.exact([1, -2, 0], np.int8), file.exact([500, -3000, 0], np.int32),
    ]  # fmt: skip
    inputs += [file.constant(np.float32(0.05)), file.exact(77, np.uint8)] if rounded else []
    file.add("QGemm", *inputs, alpha=alpha, domain=MICROSOFT, **attributes)
    return file.numbers(0.05, 77) if rounded else file


def paired(operator: str, constant: bool) -> Levels:
    """QLinearAdd or QLinearMul of the input with a constant or with a part of itself."""
    file = Levels(1, 2, 3)
    other = [file.levels, *file.pair]
    if constant:
        other = [
            file.exact(drawn(2, 1, kind=np.uint8), np.uint8),
            file.constant(np.float32(0.017)),
            file.exact(90, np.uint8),
        ]
    out = [file.constant(np.float32(0.029)), file.exact(101, np.uint8)]
    file.add(operator, file.levels, *file.pair, *other, *out, domain=MICROSOFT)
    return file.numbers(0.029, 101)


def joined() -> Levels:
    """QLinearConcat of levels of two scales."""
    file = Levels(1, 2, 3)
    file.add("QuantizeLinear", "x", file.constant(np.float32(0.02)), file.exact(40, np.uint8))
    other = [file.last, file.constant(np.float32(0.02)), file.exact(40, np.uint8)]
    out = [file.constant(np.float32(0.015)), file.exact(60, np.uint8)]
    file.add("QLinearConcat", *out, file.levels, *file.pair, *other, axis=1, domain=MICROSOFT)
    return file.numbers(0.015, 60)


def function(operator: str, **attributes: Any) -> Levels:
    """A function of levels."""
    file = Levels(1, 2, 5, 4)
    out = [file.constant(np.float32(0.0073)), file.exact(100, np.uint8)]
    file.add(operator, file.levels, *file.pair, *out, domain=MICROSOFT, **attributes)
    return file.numbers(0.0073, 100)


CASES: dict[str, tuple[File, int, str | None]] = {
    "a convolution": (convolved(1, 2, 5, 4, weight=(3, 2, 3, 2)), 13, JUMPING),
    "a convolution of channels": (
        convolved(
            1, 2, 5, 4, weight=(4, 1, 3, 2), scales=[0.004, 0.01, 0.002, 0.007], zeros=[0, 0, 0, 0], group=2,
            pads=[1, 0, 0, 2], strides=[2, 1],
        ), 13, JUMPING,
    ),
    "a convolution around zero points": (
        convolved(1, 2, 5, 4, weight=(3, 2, 3, 3), zeros=110, kind=np.uint8, bias=False,
                  auto_pad="SAME_UPPER"),
        13, JUMPING,
    ),
    "a convolution of a line": (convolved(1, 2, 7, weight=(3, 2, 3), dilations=[2]), 13, JUMPING),
    "integers convolved": (integer_convolution(119, pads=[1, 1, 0, 1]), 13, JUMPING),
    "integers convolved without points": (integer_convolution(None), 13, JUMPING),
    "a product": (multiplied((1, 3, 4), (4, 2), False, 0.013, 4), 13, JUMPING),
    "a product of columns": (
        multiplied((1, 3, 4), (4, 2), False, [0.013, 0.002], [4, -20]), 21, JUMPING,
    ),
    "a product from the left": (multiplied((1, 4, 3), (2, 4), True, 0.005, 100), 13, JUMPING),
    "integers of values": (of_values(False), 13, JUMPING),
    "integers of a range": (of_values(True), 13, JUMPING),
    "a range": (ranged(1.0, 0.0), 13, JUMPING),
    "a range above": (ranged(0.5, 2.0), 13, JUMPING),
    "a range below": (ranged(0.5, -2.0), 13, JUMPING),
    "a range of nothing": (ranged(0.0, 0.0), 13, JUMPING),
    "gemm": (gemm(1.0, True, transB=1), 13, JUMPING),
    "gemm as numbers": (gemm(0.5, False), 13, JUMPING),
    "a sum": (paired("QLinearAdd", False), 13, JUMPING),
    "a sum with a constant": (paired("QLinearAdd", True), 13, JUMPING),
    "a product of entries": (paired("QLinearMul", False), 13, JUMPING),
    "a product with a constant": (paired("QLinearMul", True), 13, JUMPING),
    "levels joined": (joined(), 13, JUMPING),
    "sigmoid": (function("QLinearSigmoid"), 13, JUMPING),
    "leaky": (function("QLinearLeakyRelu", alpha=0.3), 13, JUMPING),
    "mean of all": (function("QLinearGlobalAveragePool"), 13, JUMPING),
    "means": (function("QLinearAveragePool", kernel_shape=[2, 3], pads=[1, 0, 0, 1]), 13, JUMPING),
}  # fmt: skip
