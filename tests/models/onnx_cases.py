"""Small ONNX files of one operator or a few, and the operation by which certificates refuse each, if any."""

from __future__ import annotations

import numpy as np

from tests.models.onnx_files import File

IMAGE = (1, 2, 5, 6)
BOUNDED = None
# Bounded too, but inputs that are 0 or 1 stand on its thresholds, and may fall on either side.
JUMPING = ""
RANDOM = np.random.default_rng(2)


def one(operator: str, *more: object, shape: tuple[int, ...] = IMAGE, **attributes: object) -> File:
    """One node on the input; other inputs are constants, None where left out."""
    file = File(*shape)
    names = ["" if value is None else file.constant(value) for value in more]
    file.add(operator, "x", *names, **attributes)
    return file


def two(operator: str, first: dict[str, object], second: dict[str, object] | None = None) -> File:
    """operator(mean of x over some axes, x or another mean of it)."""
    file = File(*IMAGE)
    left = file.add("ReduceMean", "x", **first)
    right = "x" if second is None else file.add("ReduceMean", "x", **second)
    file.add(operator, left, right)
    return file


def gated(*operators: str, **attributes: object) -> File:
    """The input times some operators of it, one after the other."""
    file = File(*IMAGE)
    for place, operator in enumerate(operators):
        file.add(operator, file.last if place else "x", **attributes)
    file.add("Mul", "x", file.last)
    return file


def joined(*parts: object, axis: int, shape: tuple[int, ...] = (1, 3, 4)) -> File:
    """Concat of constants and the input, "x"."""
    file = File(*shape)
    file.add("Concat", *("x" if isinstance(p, str) else file.constant(p) for p in parts), axis=axis)
    return file


def chosen(condition: str, numbers: tuple[object, object]) -> File:
    """Where(condition(x, 0.1), ...), where "x" stands for the input and "mean" for its channels' means."""
    file = File(*IMAGE)
    names = {"x": "x", "mean": file.add("ReduceMean", "x", axes=[2, 3])}
    asked = file.add(condition, "x", file.constant(0.1))
    file.add("Where", asked, *(names[n] if isinstance(n, str) else file.constant(n) for n in numbers))
    return file


def counted() -> File:
    """How many entries are above a number: a comparison made a number again."""
    file = File(*IMAGE)
    file.add("Cast", file.add("Greater", "x", file.constant(0.2)), to=1)
    file.add("ReduceSum", file.last, file.constant([3]), keepdims=0)
    return file


def squeeze_and_excitation() -> File:
    """x times a gate per channel made of x's means."""
    file = File(*IMAGE)
    pooled = file.add("Conv", file.add("GlobalAveragePool", "x"), file.weights(2, 2, 1, 1))
    file.add("Mul", "x", file.add("Sigmoid", pooled))
    return file


def spelled_out_layer_norm() -> File:
    """(x - mean) / sqrt(variance + eps), as exporters before opset 17 write it."""
    file = File(1, 3, 6)
    centred = file.add("Sub", "x", file.add("ReduceMean", "x", axes=[-1]))
    squares = file.add("ReduceMean", file.add("Pow", centred, file.constant(2.0)), axes=[-1])
    file.add("Div", centred, file.add("Sqrt", file.add("Add", squares, file.constant(1e-5))))
    return file


def products(windows: bool) -> File:
    """Values times values: windows cut from the samples' axis by values that keep it, as in attention."""
    file = File(1, 4, 6)
    right = file.add("Transpose", "x", perm=[0, 2, 1])
    left = "x"
    if windows:
        left = file.add("Reshape", "x", file.constant([2, 2, 6]))
    file.add("MatMul", left, right)
    return file


def resized(mode: str, **attributes: object) -> File:
    sizes, scales = attributes.pop("sizes", None), attributes.pop("scales", None)
    return one("Resize", None, scales, sizes, mode=mode, **attributes)


def column_of_biases() -> File:
    """A Gemm whose bias has an entry per row, on as many rows as columns."""
    file = File(4, 3)
    file.add("Gemm", "x", file.weights(3, 4), file.weights(4, 1))
    return file


def single_entries() -> File:
    """An entry of the input, a number without axes, beside two others."""
    file = File(4)
    first = file.add(
        "Unsqueeze", file.add("Relu", file.add("Gather", "x", file.constant(1))), file.constant([0])
    )
    file.add("Concat", first, file.add("Gather", "x", file.constant([3, 2])), axis=0)
    return file


def squared() -> File:
    """x times itself."""
    file = File(1, 4)
    file.add("Mul", "x", "x")
    return file


def masked() -> File:
    """x or a constant, by a constant mask."""
    file = File(*IMAGE)
    file.add(
        "Where",
        file.constant(RANDOM.random(IMAGE) < 0.5, bool),
        "x",
        file.constant(RANDOM.standard_normal(IMAGE)),
    )
    return file


def matrices() -> File:
    """A constant with an axis for the sample times x."""
    file = File(1, 4, 3)
    file.add("MatMul", file.weights(1, 6, 4), "x")
    return file


def column_of_one() -> File:
    """W x + b, twice, for a column x of one entry, whose first axis is not the samples'."""
    file = File(1, 1)
    for before, after in ((1, 4), (4, 3)):
        file.add("MatMul", file.weights(after, before), file.last)
        file.add("Relu", file.add("Add", file.last, file.weights(after, 1)))
    return file


def guarded_softplus(threshold: float) -> File:
    """x above a threshold, else softplus(x), as PyTorch's exporter writes the softplus."""
    file = File(*IMAGE)
    soft = file.add("Softplus", "x")
    file.add("Where", file.add("Greater", "x", file.constant(threshold)), "x", soft)
    return file


def row_turned_into_a_column() -> File:
    """Gemm of a matrix with the input transposed, a column, and back."""
    file = File(1, 4)
    file.add("Gemm", file.weights(3, 4), "x", file.weights(3, 1), transB=1)
    file.add("Gemm", file.add("Relu"), file.weights(3, 2), transA=1)
    return file


def with_a_stray_label() -> File:
    """A network whose file finds the label too, which is not among its outputs."""
    file = File(1, 4)
    logits = file.add("Gemm", "x", file.weights(4, 3))
    file.add("Cast", file.add("ArgMax", logits), to=1)
    file.add("Relu", logits)
    return file


def averaged() -> File:
    """The mean of x, relu(x) and a constant."""
    file = File(1, 4)
    file.add("Mean", "x", file.add("Relu"), file.constant([[1.0, 2.0, 3.0, 4.0]]))
    return file


def largest(*count: object, **attributes: object) -> File:
    """The first output of TopK."""
    file = File(*IMAGE)
    file.add("TopK", "x", *(file.constant(k) for k in count), outputs=2, **attributes)
    return file


def multiplied(matrix: np.ndarray | None = None) -> File:
    """Einsum of x with its transpose, or of a constant matrix with x."""
    file = File(1, 4, 6)
    if matrix is None:
        turned = file.add("Einsum", "x", equation="bij->bji")
        file.add("Einsum", "x", turned, equation="bij,bjk->bik")
    else:
        file.add("Einsum", file.constant(matrix), "x", equation="oi,bij->boj")
    return file


POOL = {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}
LARGEST = {"kernel_shape": [3, 3], "strides": [2, 3]}
KERNEL = RANDOM.standard_normal((2, 3, 3, 2))
LINE = (1, 2, 9)
WIDE = RANDOM.standard_normal((6, 3))
PAIR, CHANNELS = RANDOM.standard_normal((2, 6)), RANDOM.standard_normal((2, 2))
CASES: dict[str, tuple[File, int, str | None]] = {
    "max last": (one("ReduceMax", axes=[-1], keepdims=0), 13, BOUNDED),
    "max of one axis between": (one("ReduceMax", axes=[2]), 13, BOUNDED),
    "max of two axes apart": (one("ReduceMax", axes=[1, 3], keepdims=0), 13, BOUNDED),
    "max by opset 18": (one("ReduceMax", [1, 2]), 18, BOUNDED),
    "min": (one("ReduceMin", axes=[1, 2], keepdims=0), 13, BOUNDED),
    "min without samples": (one("ReduceMin", axes=[0], shape=(3, 4)), 13, BOUNDED),
    "sum": (one("ReduceSum", [2, 3]), 13, BOUNDED),
    "l2 norm": (one("ReduceL2", axes=[3], keepdims=0), 13, BOUNDED),
    "l1 norm": (one("ReduceL1", axes=[1]), 13, BOUNDED),
    "sum of squares": (one("ReduceSumSquare", axes=[1, 2]), 13, BOUNDED),
    "logsumexp": (one("ReduceLogSumExp", axes=[3]), 13, BOUNDED),
    "add channel means": (two("Add", {"axes": [2, 3]}), 13, BOUNDED),
    "subtract from means": (two("Sub", {"axes": [1]}, {"axes": [3]}), 13, BOUNDED),
    "maximum with means": (two("Max", {"axes": [1, 2]}), 13, BOUNDED),
    "multiply with means of fewer axes": (two("Mul", {"axes": [1, 2], "keepdims": 0}), 13, BOUNDED),
    "divide by means": (two("Div", {"axes": [3]}, {"axes": [2]}), 13, BOUNDED),
    "add equal shapes": (two("Add", {"axes": [2]}, {"axes": [2]}), 13, BOUNDED),
    "squeeze and excitation": (squeeze_and_excitation(), 13, BOUNDED),
    "layer norm spelled out": (spelled_out_layer_norm(), 13, BOUNDED),
    "max pool ceil": (one("MaxPool", shape=(1, 2, 6, 5), **POOL), 13, BOUNDED),
    "max pool ceil padded": (one("MaxPool", pads=[1, 0, 1, 0], **POOL), 13, BOUNDED),
    "max pool ceil uneven": (one("MaxPool", pads=[0, 1, 1, 0], **POOL), 13, BOUNDED),
    "max pool uneven": (one("MaxPool", pads=[1, 0, 0, 2], **LARGEST), 13, BOUNDED),
    "max pool same": (one("MaxPool", auto_pad="SAME_UPPER", **LARGEST), 13, BOUNDED),
    "max pool ceil dilated": (
        one("MaxPool", shape=(1, 1, 8, 7), dilations=[2, 2], **POOL), 13, BOUNDED,
    ),
    "average pool ceil": (one("AveragePool", shape=(1, 2, 6, 5), **POOL), 13, BOUNDED),
    "average pool ceil padded": (one("AveragePool", pads=[1, 1, 1, 1], **POOL), 13, BOUNDED),
    "average pool ceil counted": (
        one("AveragePool", pads=[1, 1, 1, 1], count_include_pad=1, **POOL), 19, BOUNDED,
    ),
    "average pool uneven": (one("AveragePool", pads=[1, 0, 0, 2], **LARGEST), 13, BOUNDED),
    "average pool far padded": (
        one("AveragePool", kernel_shape=[3, 3], pads=[2, 2, 2, 2]), 13, BOUNDED,
    ),
    "pad reflect": (one("Pad", [0, 0, 2, 1, 0, 0, 1, 3], mode="reflect"), 13, BOUNDED),
    "pad edge": (one("Pad", [0, 1, 0, 2, 0, 0, 7, 1], mode="edge"), 13, BOUNDED),
    "pad wrap": (one("Pad", [0, 0, 2, 1, 0, 0, 1, 3], mode="wrap"), 19, BOUNDED),
    "pad edge of axes": (one("Pad", [2, 1], None, [-1], mode="edge"), 18, BOUNDED),
    "class token": (joined(RANDOM.standard_normal((1, 1, 4)), "x", axis=1), 13, BOUNDED),
    "constants everywhere": (
        joined(PAIR[None, :, :3].transpose(0, 2, 1), "x", "x", PAIR[None, :, :3].transpose(0, 2, 1), axis=2),
        13, BOUNDED,
    ),
    "constant between": (joined("x", RANDOM.standard_normal((2, 4)), "x", axis=0, shape=(3, 4)), 13, BOUNDED),
    "a product of values": (products(False), 13, BOUNDED),
    "a product of values of uneven axes": (products(True), 13, BOUNDED),
    "layer norm": (one("LayerNormalization", PAIR[0], PAIR[1]), 17, BOUNDED),
    "layer norm of axes": (
        one("LayerNormalization", RANDOM.standard_normal((5, 6)), axis=2, epsilon=1e-3), 17, BOUNDED,
    ),
    "instance norm": (one("InstanceNormalization", *CHANNELS, epsilon=1e-3), 13, BOUNDED),
    "group norm": (one("GroupNormalization", *CHANNELS, num_groups=1), 21, BOUNDED),
    "resize nearest": (resized("nearest", scales=[1.0, 1.0, 2.0, 3.0]), 13, BOUNDED),
    "resize nearest sizes": (resized("nearest", sizes=[1, 2, 7, 4]), 13, BOUNDED),
    "resize nearest floor": (
        resized(
            "nearest", sizes=[1, 2, 11, 15], nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        ), 13, BOUNDED,
    ),
    "resize nearest ceil": (
        resized("nearest", scales=[1.0, 1.0, 1.4, 1.1], nearest_mode="ceil"), 13, BOUNDED,
    ),
    "resize nearest to the half above": (
        resized(
            "nearest", sizes=[1, 2, 12, 14], nearest_mode="round_prefer_ceil",
            coordinate_transformation_mode="asymmetric",
        ), 13, BOUNDED,
    ),
    "resize linear": (resized("linear", scales=[1.0, 1.0, 2.0, 1.5]), 13, BOUNDED),
    "resize linear corners": (
        resized("linear", sizes=[1, 2, 8, 3], coordinate_transformation_mode="align_corners"), 13, BOUNDED,
    ),
    "resize linear torch": (
        resized("linear", sizes=[1, 2, 9, 1], coordinate_transformation_mode="pytorch_half_pixel"),
        13, BOUNDED,
    ),
    "resize of opset 10": (one("Resize", [1.0, 1.0, 2.0, 2.0], mode="nearest"), 10, BOUNDED),
    "upsample of opset 9": (one("Upsample", [1.0, 1.0, 2.0, 2.0], mode="nearest"), 9, BOUNDED),
    "gather any": (one("Gather", [2, 0, 0, -1], axis=3), 13, BOUNDED),
    "slice backwards": (one("Slice", [4, -1], [-9, 0], [2, 3], [-1, -2]), 13, BOUNDED),
    "expand": (one("Expand", [3, 1, 4], shape=(1, 1, 4)), 13, BOUNDED),
    "expand in front": (one("Expand", [2, 3, 4], shape=(3, 4)), 13, BOUNDED),
    "where": (chosen("Greater", ("x", -1.0)), 13, BOUNDED),
    "where of shapes": (chosen("LessOrEqual", ("mean", "x")), 13, BOUNDED),
    "where of equals": (chosen("Equal", ("mean", "x")), 13, BOUNDED),
    "a comparison as a number": (counted(), 13, BOUNDED),
    "thresholded relu": (one("ThresholdedRelu", alpha=0.0), 13, BOUNDED),
    "a threshold that jumps": (one("ThresholdedRelu", alpha=0.3), 13, BOUNDED),
    "a threshold of 1": (one("ThresholdedRelu"), 13, JUMPING),
    "soft shrink": (one("Shrink", bias=0.3, lambd=0.3), 13, BOUNDED),
    "shrink": (one("Shrink"), 13, BOUNDED),
    "shrink to nothing": (one("Shrink", lambd=0.0), 13, BOUNDED),
    "largest entries": (largest([1], axis=2), 13, BOUNDED),
    "largest entries of the last axis": (largest([1]), 13, BOUNDED),
    "least entries": (largest([1], axis=-3, largest=0), 13, BOUNDED),
    "largest entries of opset 9": (largest(k=1, axis=3), 9, BOUNDED),
    "einsum transposed": (one("Einsum", equation="abcd->acdb"), 13, BOUNDED),
    "einsum with the sample moved": (one("Einsum", equation="a b c d -> c d b a"), 13, BOUNDED),
    "einsum without samples": (one("Einsum", equation="ij->ji", shape=(3, 4)), 13, BOUNDED),
    "einsum times a matrix": (one("Einsum", WIDE, equation="bi,ij->bj", shape=(1, 6)), 13, BOUNDED),
    "einsum times a transposed matrix": (
        one("Einsum", WIDE.T, equation="bi,ji->bj", shape=(1, 6)), 13, BOUNDED,
    ),
    "einsum of a middle axis": (
        one("Einsum", WIDE, equation="bxiy,io->yxbo", shape=(1, 2, 6, 3)), 13, BOUNDED,
    ),
    "einsum of a vector": (one("Einsum", WIDE, equation="i,io->o", shape=(6,)), 13, BOUNDED),
    "einsum of values": (multiplied(), 13, BOUNDED),
    "a matrix before einsum": (multiplied(RANDOM.standard_normal((2, 4))), 13, BOUNDED),
    "a column of biases": (column_of_biases(), 13, BOUNDED),
    "entries one by one": (single_entries(), 13, BOUNDED),
    "a square by multiplication": (squared(), 13, BOUNDED),
    "a row turned into a column": (row_turned_into_a_column(), 13, BOUNDED),
    "a stray label": (with_a_stray_label(), 13, BOUNDED),
    "gather a table": (one("Gather", [[2, 0, 0], [-1, 1, 4]], axis=2), 13, BOUNDED),
    "gather a table without samples": (one("Gather", [[2, 0]], axis=0, shape=(3, 4)), 13, BOUNDED),
    "a column of one entry": (column_of_one(), 13, BOUNDED),
    "softplus by an exporter": (guarded_softplus(20.0), 13, BOUNDED),
    "softplus cut early": (guarded_softplus(0.5), 13, BOUNDED),
    "mean of values": (averaged(), 13, BOUNDED),
    "slopes per channel": (one("PRelu", [[[0.3]], [[-0.2]]]), 13, BOUNDED),
    "atan": (one("Atan"), 13, BOUNDED),
    "asinh": (one("Asinh"), 13, BOUNDED),
    "selu": (one("Selu"), 13, BOUNDED),
    "celu": (one("Celu", alpha=0.6), 13, BOUNDED),
    "elu": (one("Elu", alpha=1.4), 13, BOUNDED),
    "hard swish": (one("HardSwish"), 14, BOUNDED),
    "a sixth in hard sigmoid": (one("HardSigmoid", alpha=1 / 6), 13, BOUNDED),
    "hard sigmoid": (one("HardSigmoid", alpha=0.3, beta=0.4), 13, BOUNDED),
    "mish": (one("Mish"), 18, BOUNDED),
    "gelu by tanh": (one("Gelu", approximate="tanh"), 20, BOUNDED),
    "a steep slope": (one("PRelu", [1.4]), 13, BOUNDED),
    "a gate": (gated("Sigmoid"), 13, BOUNDED),
    "a hard gate": (gated("HardSigmoid", alpha=1 / 6), 13, BOUNDED),
    "two gates": (gated("Softplus", "Tanh"), 13, BOUNDED),
    "a mask": (masked(), 13, BOUNDED),
    "ceil": (one("Ceil"), 13, JUMPING),
    "tile": (one("Tile", [1, 2, 1], shape=(1, 2, 3)), 13, BOUNDED),
    "depth to space": (one("DepthToSpace", blocksize=2, shape=(1, 8, 2, 3)), 13, BOUNDED),
    "depth to space by columns": (
        one("DepthToSpace", blocksize=2, mode="CRD", shape=(1, 8, 2, 3)), 13, BOUNDED,
    ),
    "space to depth": (one("SpaceToDepth", blocksize=2, shape=(1, 2, 4, 6)), 13, BOUNDED),
    "matrices of one sample": (matrices(), 13, BOUNDED),
    "sum of all": (one("ReduceSum", None, keepdims=0), 13, BOUNDED),
    "mean of all, axes kept": (one("ReduceMean"), 13, BOUNDED),
    "maximum over samples and channels": (one("ReduceMax", axes=[0, 1]), 13, BOUNDED),
    "mean over samples and more": (one("ReduceMean", axes=[-4, 2], keepdims=0), 13, BOUNDED),
    "minimum over samples": (one("ReduceMin", axes=[0]), 13, BOUNDED),
    "sum of no axes": (one("ReduceSum", np.zeros(0, dtype=np.int64), noop_with_empty_axes=1), 13, BOUNDED),
    "max pool of one axis": (
        one("MaxPool", shape=LINE, kernel_shape=[3], strides=[2], pads=[1, 0], ceil_mode=1), 13, BOUNDED,
    ),
    "average pool of one axis": (
        one("AveragePool", shape=LINE, kernel_shape=[4], strides=[3], pads=[1, 2]), 13, BOUNDED,
    ),
    "global average of one axis": (one("GlobalAveragePool", shape=LINE), 13, BOUNDED),
    "global maximum of one axis": (one("GlobalMaxPool", shape=LINE), 13, BOUNDED),
    "transposed convolution, same above": (
        one("ConvTranspose", KERNEL, strides=[2, 1], auto_pad="SAME_UPPER"), 13, BOUNDED,
    ),
    "transposed convolution, same below": (
        one("ConvTranspose", KERNEL, strides=[2, 1], auto_pad="SAME_LOWER"), 13, BOUNDED,
    ),
    "transposed convolution, uneven": (
        one("ConvTranspose", KERNEL, CHANNELS[0, [0, 1, 1]], strides=[2, 2], pads=[0, 1, 2, 0]), 13, BOUNDED,
    ),
    "transposed convolution, output shape": (
        one("ConvTranspose", KERNEL, strides=[2, 2], output_shape=[10, 11]), 13, BOUNDED,
    ),
}  # fmt: skip
