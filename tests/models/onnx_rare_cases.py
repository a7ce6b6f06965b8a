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


def layer(
    operator: str, way: str, output: int = 0, start: bool = True, read: bool = False, **attributes: object
) -> File:
    """A recurrent layer over three steps, or of samples first where its output is the last steps'.

    It starts from zeros, from constants, or from the first steps where it `read`s its start.
    """
    width, directions = {"RNN": 2, "GRU": 6, "LSTM": 8}[operator], 1 + (way == "bidirectional")
    file = File(*STEPS) if output == 0 else File(1, 3, 2)
    x = "x" if output == 0 else file.add("Transpose", "x", perm=[1, 0, 2])
    *weights, hidden = (file.constant(value) for value in recurrent(width, directions))
    if read:
        hidden = file.add("Slice", x, file.constant([0]), file.constant([directions]))
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


def counted_in_the_file() -> File:
    """x plus what operators make of its shape and of constants alone, as exporters leave it."""
    file = File(1, 3, 4)
    size = file.add("Size", "x")
    places = file.add("Range", file.constant(0), file.add("Div", size, file.constant(3)), file.constant(1))
    odd = file.add("Equal", file.add("Mod", places, file.constant(2)), file.constant(1))
    either = file.add("Xor", odd, file.add("IsNaN", file.constant([0.0, np.nan, 1.0, 2.0])))
    found = file.add("Squeeze", file.add("NonZero", either), file.constant([0]))
    marks = file.add("OneHot", found, file.constant(4), file.constant([0.0, 2.5]))
    eye = file.add("EyeLike", file.constant(np.zeros((1, 4))), k=2)
    whole = file.add("Add", file.add("CastLike", size, "x"), file.add("Add", marks, eye))
    square = file.add("EyeLike", file.add("Squeeze", "x", file.constant([0])), k=-1)
    file.add("CastLike", file.add("Add", file.add("CastLike", "x", square), square), "x")
    file.add("Add", file.last, file.add("ReduceSum", whole, file.constant([0]), keepdims=1))
    return file


def guarded_softmax() -> File:
    """A softmax, or 0 where it is no number, as PyTorch writes attention with masks."""
    file = File(1, 3, 4)
    soft = file.add("Softmax", "x", axis=-1)
    file.add("Where", file.add("IsNaN", soft), file.constant(0.0), soft)
    return file


def moved(operator: str, by: float, **attributes: object) -> File:
    """An operator on the input moved to where it is defined, or scaled there."""
    file = File(1, 2, 3)
    file.add(operator, file.add("Mul" if by < 1 else "Add", "x", file.constant(by)), **attributes)
    return file


def asked(operator: str, **attributes: object) -> File:
    """Whether each of 1 / (1[x > 0.2] - 1[x > 0.5]) is a number, as one."""
    file = File(*LINE)
    low, high = (file.add("Cast", file.add("Greater", "x", file.constant(t)), to=1) for t in (0.2, 0.5))
    odd = file.add("Sub", low, file.add("Mul", high, file.constant(2.0)))
    file.add("Cast", file.add(operator, file.add("Div", odd, file.add("Abs", low)), **attributes), to=1)
    return file


DRAWN = RANDOM.standard_normal((3, 4))
VOLUME = (1, 2, 4, 5, 6)
BOX = {"kernel_shape": [2, 3, 2], "strides": [2, 1, 3]}
UNEVEN = [1, 0, 0, 0, 1, 1]
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
    "recurrent from a value": (layer("RNN", "forward", read=True), 14, BOUNDED),
    "recurrent gates from values": (layer("GRU", "bidirectional", read=True), 14, BOUNDED),
    "long memory from values": (layer("LSTM", "bidirectional", 1, read=True), 14, BOUNDED),
    "long memory from a value": (layer("LSTM", "reverse", 2, read=True), 14, BOUNDED),
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
    "counted in the file": (counted_in_the_file(), 15, BOUNDED),
    "guarded softmax": (guarded_softmax(), 13, BOUNDED),
    "no number": (asked("IsNaN"), 13, "isnan"),
    "infinite": (asked("IsInf"), 13, "isinf"),
    "infinite above": (asked("IsInf", detect_negative=0), 13, "isposinf"),
    "infinite below": (asked("IsInf", detect_positive=0), 13, "isneginf"),
    "remainders": (one("Mod", [[0.3], [-0.2]], shape=(1, 2, 3), fmod=1), 13, "fmod"),
    "sinh": (one("Sinh"), 13, BOUNDED),
    "cosh": (one("Cosh"), 13, BOUNDED),
    "arcsine": (moved("Asin", 0.8), 13, BOUNDED),
    "arccosine": (moved("Acos", 0.8), 13, BOUNDED),
    "area tangent": (moved("Atanh", 0.8), 13, BOUNDED),
    "area cosine": (moved("Acosh", 2.5), 13, "acosh"),
    "local response": (
        one("LRN", shape=(1, 7, 2, 3), size=3, alpha=0.5, beta=0.75, bias=1.2), 13, BOUNDED,
    ),
    "local response by default": (one("LRN", shape=(1, 7, 2, 3), size=5), 1, BOUNDED),
    "local response of all": (
        one("LRN", shape=(1, 2, 2, 3), size=7, alpha=0.9, beta=0.5), 13, BOUNDED,
    ),
    "local response by another power": (
        one("LRN", shape=(1, 4, 2, 3), size=3, alpha=0.9, beta=0.6), 13, "pow",
    ),
    "norm 1": (one("LpNormalization"), 13, BOUNDED),
    "norm 1 by absolute values": (one("LpNormalization", p=1, axis=1), 22, BOUNDED),
    "norm 1 of columns": (one("LpNormalization", shape=(3, 4), axis=0), 13, BOUNDED),
    "mean and variance": (one("MeanVarianceNormalization"), 13, BOUNDED),
    "mean and variance between": (one("MeanVarianceNormalization", axes=[1, 3]), 13, BOUNDED),
    "mean and variance of columns": (
        one("MeanVarianceNormalization", shape=(3, 4), axes=[0]), 9, BOUNDED,
    ),
    "mean and variance of samples too": (one("MeanVarianceNormalization", axes=[-1, 0]), 13, BOUNDED),
    "maxima of boxes": (one("MaxPool", shape=VOLUME, **BOX), 13, BOUNDED),
    "maxima of boxes, uneven": (one("MaxPool", shape=VOLUME, pads=UNEVEN, **BOX), 13, BOUNDED),
    "maxima of boxes, ceil": (one("MaxPool", shape=VOLUME, ceil_mode=1, **BOX), 13, BOUNDED),
    "maxima of boxes, same": (
        one("MaxPool", shape=VOLUME, auto_pad="SAME_LOWER", kernel_shape=[2, 3, 2]), 13, BOUNDED,
    ),
    "maxima of boxes, dilated": (
        one("MaxPool", shape=VOLUME, kernel_shape=[2, 2, 2], dilations=[2, 3, 1]), 13, BOUNDED,
    ),
    "means of boxes": (one("AveragePool", shape=VOLUME, **BOX), 13, BOUNDED),
    "means of boxes, uneven": (one("AveragePool", shape=VOLUME, pads=UNEVEN, **BOX), 13, BOUNDED),
    "means of boxes, counted": (
        one("AveragePool", shape=VOLUME, pads=UNEVEN, count_include_pad=1, ceil_mode=1, **BOX), 19, BOUNDED,
    ),
    "mean of a volume": (one("GlobalAveragePool", shape=VOLUME), 13, BOUNDED),
    "maximum of a volume": (one("GlobalMaxPool", shape=VOLUME), 13, BOUNDED),
    "three largest": (one("TopK", [3], shape=(1, 5, 2), axis=1, outputs=2), 13, "topk"),
    "two least": (one("TopK", [2], shape=(5, 2), axis=0, largest=0, outputs=2), 13, "topk"),
    "two largest of old": (one("TopK", shape=LINE, k=2, outputs=2), 9, "topk"),
}  # fmt: skip
