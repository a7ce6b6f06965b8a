"""Small ONNX files of rarer operators: entries by number, recurrence, graphs inside, rounding to integers."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.models.onnx_cases import BOUNDED, JUMPING, one
from tests.models.onnx_files import File

RANDOM = np.random.default_rng(4)
LINE, STEPS = (1, 6), (3, 1, 2)


def recurrent(width: int, directions: int = 1) -> tuple[np.ndarray, ...]:
    """Weights of inputs and hidden values, biases and a start: `width` rows for two hidden values."""
    shapes = (width, 2), (width, width if width == 3 else 2), (2 * width,), (1, 2)
    return tuple(RANDOM.standard_normal((directions, *shape)) for shape in shapes)


def layer(operator: str, way: str, output: int = 0, start: bool = True, **attributes: object) -> File:
    """A recurrent layer over three steps, or of samples first where its output is the last steps'."""
    width, directions = {"RNN": 2, "GRU": 6, "LSTM": 8}[operator], 1 + (way == "bidirectional")
    file = File(*STEPS) if output == 0 else File(1, 3, 2)
    x = "x" if output == 0 else file.add("Transpose", "x", perm=[1, 0, 2])
    *weights, hidden = (file.constant(value) for value in recurrent(width, directions))
    more = ["", hidden, *([hidden] if operator == "LSTM" else [])] if start else []
    count = 3 if operator == "LSTM" else 2
    name = file.add(operator, x, *weights, *more, outputs=count, hidden_size=2, direction=way, **attributes)
    file.add("Reshape", f"{name[:-1]}{output}", file.constant([1, -1]))
    return file


def _graph(*nodes: object, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ("inner",)) -> object:
    """A graph inside a node."""
    kinds = {"round": TensorProto.INT64, "going": TensorProto.BOOL, "on": TensorProto.BOOL}

    def declared(name: str) -> object:
        kind = kinds.get(name, TensorProto.FLOAT)
        return helper.make_tensor_value_info(name, kind, [] if name in kinds else None)

    ends = ([declared(name) for name in names] for names in (inputs, outputs))
    return helper.make_graph(list(nodes), "inner", *ends)


def volumes() -> File:
    """Two convolutions over volumes, unevenly padded and strided, one normalised, with ReLUs."""
    file = File(1, 2, 3, 4, 5)
    file.add(
        "Conv", "x", file.weights(3, 2, 2, 3, 1), file.weights(3), strides=[1, 2, 1], pads=[1, 0, 2, 0, 1, 2]
    )
    file.add("BatchNormalization", file.last, *(file.constant([0.5, 1.0, 2.0]) for _ in range(4)))
    file.add("Relu")
    file.add("Conv", file.last, file.weights(6, 1, 2, 2, 2), group=3, dilations=[1, 1, 2])
    file.add("Relu")
    file.add("Flatten")
    file.add("Gemm", file.last, file.weights(84, 3))
    return file


def branching(condition: bool | None) -> File:
    """-x or x + 1, by a constant or by the input, and the ReLU of it."""
    file = File(*LINE)
    asked = "" if condition is None else file.constant(condition, bool)
    if condition is None:
        asked = file.add("Greater", file.add("ReduceSum", "x", keepdims=0), file.constant(0.0))
    one_ = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    then, other = (helper.make_node(*node, ["inner"]) for node in (("Neg", ["x"]), ("Add", ["x", "one"])))
    file.add("Relu", file.add("If", asked, then_branch=_graph(then), else_branch=_graph(one_, other)))
    return file


def looping(collected: bool = False) -> File:
    """Three rounds of relu(x) - 0.2, starting from the input."""
    file = File(*LINE)
    offset = file.constant(-0.2)
    body = _graph(
        helper.make_node("Relu", ["before"], ["positive"]),
        helper.make_node("Add", ["positive", offset], ["after"]),
        helper.make_node("Identity", ["going"], ["on"]),
        inputs=("round", "going", "before"),
        outputs=("on", "after", *(["positive"] if collected else [])),
    )
    file.add("Loop", file.constant(3), file.constant(True, bool), "x", body=body, outputs=1 + collected)
    return file


def scattered(
    operator: str, data: object, places: object, shape: tuple[int, ...], **attributes: object
) -> File:
    """Values put into constants at constant places."""
    file = File(*shape)
    file.add(operator, file.constant(data), file.constant(places), "x", **attributes)
    return file


def quantised(scale: object, zero: np.ndarray | None, **attributes: object) -> File:
    """The input rounded to a scale's multiples, pooled, and integers of a constant made numbers."""
    file = File(1, 2, 3)
    level = [] if zero is None else [file.constant(zero, zero.dtype)]
    pair = file.constant(scale), *level
    file.add("DequantizeLinear", file.add("QuantizeLinear", "x", *pair, **attributes), *pair, **attributes)
    weights = file.constant(RANDOM.integers(-100, 100, (3, 2)), np.int8)
    pooled = file.last
    file.add("DequantizeLinear", weights, file.constant(0.01), file.constant(0, np.int8))
    file.add("MatMul", pooled, file.last)
    return file


def multiplied(equation: str, *inputs: object, shape: tuple[int, ...]) -> File:
    """Einsum of the input, "x", and constants."""
    file = File(*shape)
    names = ["x" if isinstance(value, str) else file.constant(value) for value in inputs]
    file.add("Einsum", *names, equation=equation)
    file.add("Reshape", file.last, file.constant([1, -1]))
    return file


def stacked(constant: bool) -> File:
    """The input above itself, or above a constant, along the axis that was the samples'."""
    file = File(1, 3)
    file.add("Concat", "x", file.constant(np.ones((1, 3))) if constant else file.add("Neg", "x"), axis=0)
    return file


DRAWN = RANDOM.standard_normal((3, 4))
PLACES = RANDOM.integers(0, 3, (1, 2, 3, 3))
KERNEL = RANDOM.standard_normal((2, 3, 3))
CASES: dict[str, tuple[File, int, str | None]] = {
    "entries by number": (one("GatherND", [[0, 2], [0, -1]], shape=(1, 3, 2)), 13, BOUNDED),
    "entries by number of a batch": (
        one("GatherND", [[[0], [2]]], shape=(1, 3, 2), batch_dims=1), 13, BOUNDED,
    ),
    "entries along an axis": (one("GatherElements", PLACES, shape=(1, 2, 3, 3), axis=3), 13, BOUNDED),
    "entries put into the input": (
        one("ScatterND", [[0, 1], [0, 3]], [9.0, 8.0], shape=LINE), 16, BOUNDED,
    ),
    "entries put into constants": (
        scattered("ScatterND", np.arange(6.0)[None], [[[0, 3], [0, 0]]], (1, 2)), 16, BOUNDED,
    ),
    "many entries put into constants": (
        scattered("ScatterElements", np.arange(40.0)[None], [[2 * i for i in range(20)]], (1, 20), axis=1),
        16, BOUNDED,
    ),
    "rows put into a matrix": (one("ScatterND", [[1]], [[7.0, 8.0]], shape=(3, 2)), 13, BOUNDED),
    "gather a list of one sample": (one("Gather", [0], axis=0, shape=LINE), 13, BOUNDED),
    "gather a sample twice": (one("Gather", [0, 0], axis=0, shape=LINE), 13, BOUNDED),
    "samples stacked": (stacked(False), 13, BOUNDED),
    "a constant stacked": (stacked(True), 13, BOUNDED),
    "a constant with more axes": (one("Add", np.ones((2, 2, 3)), shape=(2, 3)), 13, BOUNDED),
    "a constant that widens": (one("Mul", DRAWN[:, :3], shape=(1, 3)), 13, BOUNDED),
    "a number times a row": (one("Sub", DRAWN[:1], shape=(1, 1)), 13, BOUNDED),
    "upper triangle": (one("Trilu", shape=(1, 3, 4)), 14, BOUNDED),
    "lower triangle": (one("Trilu", -1, shape=(3, 4), upper=0), 14, BOUNDED),
    "running sum": (one("CumSum", 1, shape=(1, 3, 4)), 14, BOUNDED),
    "running sum from behind": (one("CumSum", -1, shape=LINE, reverse=1, exclusive=1), 14, BOUNDED),
    "product": (one("ReduceProd", shape=(1, 3, 5), axes=[1, 2], keepdims=0), 13, BOUNDED),
    "product along an axis": (one("ReduceProd", shape=(1, 3, 2), axes=[1]), 13, BOUNDED),
    "softmax of all axes": (one("LogSoftmax", shape=(1, 2, 3)), 12, BOUNDED),
    "softmax of the last axes": (one("LogSoftmax", shape=(1, 2, 2, 2), axis=2), 11, BOUNDED),
    "softmax of one axis as all": (one("LogSoftmax", shape=(1, 6, 1, 1), axis=1), 9, BOUNDED),
    "clip by lists": (one("Clip", [-0.2], [0.3], shape=LINE), 13, BOUNDED),
    "transposed convolution of one axis": (
        one("ConvTranspose", KERNEL, shape=(1, 2, 5), strides=[2], output_padding=[1], pads=[1, 1]),
        13, BOUNDED,
    ),
    "transposed convolution of one axis, uneven": (
        one("ConvTranspose", KERNEL, shape=(1, 2, 5), strides=[3], pads=[2, 0]), 13, BOUNDED,
    ),
    "root mean square": (one("RMSNormalization", DRAWN[0], shape=(1, 3, 4)), 23, BOUNDED),
    "swish": (one("Swish", shape=LINE, alpha=1.5), 24, BOUNDED),
    "tangent": (one("Tan", shape=LINE), 13, BOUNDED),
    "recurrent": (layer("RNN", "bidirectional"), 14, BOUNDED),
    "recurrent by ReLU": (layer("RNN", "reverse", 1, False, activations=["Relu"]), 14, BOUNDED),
    "recurrent gates": (layer("GRU", "bidirectional", 1), 14, BOUNDED),
    "recurrent gates before": (layer("GRU", "forward", 0, False, linear_before_reset=1), 14, BOUNDED),
    "long memory": (layer("LSTM", "forward", 2), 14, BOUNDED),
    "long memory both ways": (layer("LSTM", "bidirectional", 1, False), 14, BOUNDED),
    "volumes": (volumes(), 13, BOUNDED),
    "a branch": (branching(True), 13, BOUNDED),
    "the other branch": (branching(False), 13, BOUNDED),
    "a loop": (looping(), 13, BOUNDED),
    "levels": (quantised(0.1, np.array(3, np.uint8)), 13, JUMPING),
    "levels by axis": (quantised([0.1, 0.03], np.array([0, -7], np.int8), axis=1), 13, JUMPING),
    "levels from zero": (quantised(0.1, None), 13, JUMPING),
    "einsum summed": (multiplied("abc->ac", "x", shape=(1, 3, 4)), 13, BOUNDED),
    "einsum to a number": (multiplied("abc->", "x", shape=(1, 3, 4)), 13, BOUNDED),
    "einsum implied": (multiplied("ab,ca", "x", DRAWN, shape=(4, 2)), 13, BOUNDED),
    "einsum of other axes": (multiplied("...i,io->...o", "x", DRAWN.T, shape=(1, 2, 4)), 13, BOUNDED),
    "einsum by dots": (multiplied("a...->...a", "x", shape=(1, 3, 2)), 13, BOUNDED),
    "einsum outer": (multiplied("bi,o->bio", "x", DRAWN[0], shape=(1, 3)), 13, BOUNDED),
    "einsum beside a constant": (multiplied("bij,ij->bij", "x", DRAWN, shape=(1, 3, 4)), 13, BOUNDED),
    "einsum of a quadratic form": (
        multiplied("bi,ij,bj->b", "x", DRAWN[:, :3], "x", shape=(1, 3)), 13, BOUNDED,
    ),
    "einsum of rows": (multiplied("bij,bkj->bik", "x", "x", shape=(1, 2, 3)), 13, BOUNDED),
    "einsum of samples summed": (multiplied("ab,ao->ob", "x", DRAWN[:1], shape=(1, 3)), 13, BOUNDED),
    "einsum of an axis kept and summed": (multiplied("ab,bo->ab", "x", DRAWN, shape=(1, 3)), 13, BOUNDED),
}  # fmt: skip
