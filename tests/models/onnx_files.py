"""Small ONNX files made by hand, in the styles of the verification benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class File:
    """An ONNX graph under construction: `add` returns the name of the new node's first output."""

    def __init__(self, *shape: int | str, kind: int = TensorProto.FLOAT, seed: int = 0) -> None:
        self.shape, self.kind = list(shape), kind
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.random = np.random.default_rng(seed)
        self.last = "x"

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of a new constant; floating ones in the file's type."""
        float_ = np.float64 if self.kind == TensorProto.DOUBLE else np.float32
        array = np.asarray(value)
        array = array.astype(dtype or (float_ if array.dtype.kind == "f" else np.int64))
        self.constants.append(numpy_helper.from_array(array, f"constant_{len(self.constants)}"))
        return self.constants[-1].name

    def weights(self, *shape: int) -> str:
        """The name of a new constant with random entries."""
        return self.constant(self.random.standard_normal(shape) / max(1, shape[-1]) ** 0.5)

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Adds a node on the last output where no inputs are given."""
        names = [f"{operator.lower()}_{len(self.nodes)}_{place}" for place in range(outputs)]
        node = helper.make_node(operator, list(inputs or (self.last,)), names, names[0], **attributes)
        self.nodes.append(node)
        self.last = names[0]
        return names[0]

    def model(self, opset: int = 13) -> onnx.ModelProto:
        """The model whose output is the last node's first."""
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("x", self.kind, self.shape)],
            [helper.make_tensor_value_info(self.last, self.kind, None)],
            self.constants,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
            ir_version=8,
        )

    def write(self, path: Path, opset: int = 13) -> Path:
        """Writes the model to `path`."""
        path.write_bytes(self.model(opset).SerializeToString())
        return path


def acas() -> File:
    """ACAS-Xu's style: inputs (1, 1, 1, 5), normalised, flattened, MatMul and Add, ReLU."""
    file = File(1, 1, 1, 5)
    file.add("Sub", "x", file.constant(file.random.standard_normal((1, 1, 1, 5))))
    file.add("Flatten")
    for before, after in ((5, 10), (10, 10), (10, 5)):
        file.add("MatMul", file.last, file.weights(before, after))
        file.add("Add", file.last, file.weights(after))
        if after != 5:
            file.add("Relu")
    return file


def columns() -> File:
    """The style of networks that multiply from the left: inputs (12, 1) without samples, W x + b."""
    file = File(12, 1)
    for before, after in ((12, 8), (8, 3)):
        file.add("MatMul", file.weights(after, before), file.last)
        file.add("Add", file.last, file.weights(after, 1))
        if after != 3:
            file.add("Relu")
    return file


def fully_connected() -> File:
    """The style of mnist_fc: inputs (1, 12, 1), flattened by a dynamic reshape, Gemm both ways round."""
    file = File("batch", 12, 1)
    size = file.add("Gather", file.add("Shape"), file.constant(0), axis=0)
    shape = file.add(
        "Concat",
        file.add("Unsqueeze", size, file.constant([0])),
        file.constant([-1]),
        axis=0,
    )
    file.add("Reshape", "x", shape)
    file.add("Gemm", file.last, file.weights(8, 12), file.weights(8), transB=1, alpha=0.5, beta=2.0)
    file.add("LeakyRelu", alpha=0.1)
    file.add("Gemm", file.last, file.weights(8, 4), file.weights(1, 4))
    return file


def channels_last() -> File:
    """A network over NHWC inputs: transposed, convolved with uneven padding, pooled, back and flattened."""
    file = File(1, 6, 6, 2)
    file.add("Transpose", perm=[0, 3, 1, 2])
    file.add("Conv", file.last, file.weights(3, 2, 3, 3), file.weights(3), pads=[0, 1, 1, 1], strides=[2, 1])
    file.add("Relu")
    file.add("AveragePool", kernel_shape=[2, 2], strides=[1, 2])
    file.add("Transpose", perm=[0, 2, 3, 1])
    file.add("Reshape", file.last, file.constant([-1, 18]))
    file.add("MatMul", file.last, file.weights(18, 3))
    return file


def residual() -> File:
    """A residual block with batch normalisation and a global average."""
    file = File(1, 2, 6, 6)
    stem = file.add("Relu", file.add("Conv", "x", file.weights(4, 2, 3, 3), pads=[1, 1, 1, 1]))
    file.add("Conv", stem, file.weights(4, 2, 3, 3), group=2, auto_pad="SAME_UPPER")
    file.add(
        "BatchNormalization",
        file.last,
        *(file.weights(4) for _ in range(3)),
        file.constant(file.random.uniform(0.5, 2, 4)),
    )
    file.add("Relu", file.add("Add", file.last, stem))
    file.add("GlobalAveragePool")
    file.add("Flatten")
    file.add("Gemm", file.last, file.weights(4, 3))
    return file


def smooth() -> File:
    """Sigmoid, tanh and softplus over means of a cut and padded input."""
    file = File(1, 2, 6)
    file.add("Pad", file.last, file.constant([0, 0, 1, 0, 1, 0]), file.constant(0.5))
    file.add("Slice", *(file.last, *(file.constant([value]) for value in (1, 99, 2, 2))))
    file.add("Sigmoid", file.add("ReduceMean", file.last, axes=[1], keepdims=0))
    file.add("Tanh", file.add("MatMul", file.last, file.weights(3, 4)))
    file.add("Softplus", file.add("MatMul", file.last, file.weights(4, 4)))
    return file


def bounded() -> File:
    """Clip, Max, Min, HardSigmoid, Split, Concat, Squeeze, and constants computed in the file."""
    file = File(1, 4, 2, 1)
    file.add("Squeeze", "x", file.constant([3]))
    file.add("Clip", file.last, "", file.constant(0.7))
    whole = file.add("Max", file.last, file.constant(0.2))
    left = file.add("Split", whole, axis=1, outputs=2)
    right = f"{left[:-1]}1"
    least = file.add("Min", left, right)
    doubled = file.add("Mul", file.constant(2.0), file.add("Neg", right))
    file.add("Concat", least, doubled, axis=2)
    file.add("HardSigmoid", file.add("Div", file.last, file.add("Sqrt", file.constant(4.0))))
    file.add("Flatten")
    return file


STYLES = {
    "acas": acas,
    "columns": columns,
    "fully connected": fully_connected,
    "channels last": channels_last,
    "residual": residual,
    "smooth": smooth,
    "bounded": bounded,
}
