"""Reads an ONNX file, plain or gzipped, as a network from (n, ...) to (n, outputs)."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import torch
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.checker import ValidationError
from torch import Tensor, fx, nn

import models.onnx.arithmetic
import models.onnx.choice
import models.onnx.control
import models.onnx.einsum
import models.onnx.indexing
import models.onnx.layers
import models.onnx.normalisation
import models.onnx.pooling
import models.onnx.quantisation
import models.onnx.recurrent
import models.onnx.reductions
import models.onnx.resizing
import models.onnx.shapes
import models.onnx.triangles  # noqa: F401
from models.errors import NotApplicable, UserError
from models.onnx.chain import as_chain
from models.onnx.conversion import Conversion, Symbol
from models.onnx.patterns import with_gelu

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
}


@dataclass(frozen=True)
class OnnxNetwork:
    """A network from a file: inputs (n, *shape), outputs (n, outputs), in eval mode.

    `declared` is the shape that the file gives one input, whose entries VNN-LIB counts in order;
    it equals `shape`, or (1, *shape) where the file keeps an axis of samples.
    """

    network: nn.Module
    shape: tuple[int, ...]
    declared: tuple[int, ...]
    outputs: int


def load_model(path: Path) -> ModelProto:
    """The file's content; raises UserError where it is absent or no ONNX."""
    try:
        if path.suffix == ".gz":
            return onnx.load_model_from_string(gzip.decompress(path.read_bytes()))
        return onnx.load(str(path))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (DecodeError, ValidationError, zlib.error, EOFError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as ONNX: {reason}") from None


def read(path: Path) -> OnnxNetwork:
    """The network in `path`; raises UserError, naming the operator, for what is not understood."""
    model = load_model(path)
    try:
        return convert(model)
    except NotApplicable as refusal:
        raise NotApplicable(f"{path}: {refusal}") from None
    except UserError as mistake:
        raise UserError(f"{path}: {mistake}") from None


def convert(model: ModelProto) -> OnnxNetwork:
    """The network of an ONNX model in memory."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    source = _only("input", [value for value in model.graph.input if value.name not in constants])
    target = _only("output", list(model.graph.output))
    kind = source.type.tensor_type.elem_type
    if kind not in DTYPES:
        raise NotApplicable(f"input '{source.name}' is of ONNX type {kind}, not a floating type")
    declared = _shape(source)
    batched = len(declared) > 1 and declared[0] == 1
    shape = declared[1:] if batched else declared
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    conversion = Conversion(DTYPES[kind], opsets)
    conversion.values.update(constants)
    conversion.placeholder(source.name, shape, batched)
    for operation in _needed(with_gelu(model).graph):
        conversion.convert(operation)
    result = conversion.values.get(target.name)
    if not isinstance(result, Symbol):
        raise NotApplicable(f"output '{target.name}' does not depend on the input")
    logits = result
    if result.example.dim() != 2:
        logits = conversion.call(torch.reshape, result, (-1, result.example.numel()))
    conversion.graph.output(logits.node)
    for node in reversed(conversion.graph.nodes):
        # What a rule has left out may have none among the certificates'.
        if not node.users and node.op not in ("placeholder", "output"):
            conversion.graph.erase_node(node)
    network = fx.GraphModule(conversion.root, conversion.graph, "OnnxNetwork").eval()
    _check_samples(network, torch.full((2, *shape), 0.5, dtype=conversion.dtype), logits.example.shape[1])
    chain = as_chain(network, torch.full((1, *shape), 0.5, dtype=conversion.dtype))
    return OnnxNetwork(chain, shape, declared, logits.example.shape[1])


def _needed(graph: GraphProto) -> list[NodeProto]:
    """The nodes that the outputs depend on, in order: of what is left out nothing has to be understood."""
    wanted, found = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        inner = any(attribute.HasField("g") for attribute in node.attribute)
        if inner:
            # The graph inside may read any name.
            return list(graph.node)
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found[::-1]


def _check_samples(network: nn.Module, x: Tensor, outputs: int) -> None:
    """Raises NotApplicable where the network, read with one sample, cannot take those of x."""
    try:
        with torch.no_grad():
            found = tuple(network(x).shape)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise NotApplicable(f"the network is not understood for several samples at once: {reason}") from None
    if found != (len(x), outputs):
        raise NotApplicable(f"the network makes outputs of shape {found} of {len(x)} samples: it mixes them")


def _array(tensor: TensorProto) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise UserError(f"constant '{tensor.name}' is damaged: {str(error).splitlines()[0]}") from None


def _only(kind: str, values: list[ValueInfoProto]) -> ValueInfoProto:
    if len(values) != 1:
        names = ", ".join(value.name for value in values) or "none"
        raise NotApplicable(f"the network has {len(values)} {kind}s ({names}): only one is understood")
    return values[0]


def _shape(source: ValueInfoProto) -> tuple[int, ...]:
    """The declared shape, with a batch of one where the file leaves its size open."""
    # Some exporters write an open size as 0 or -1.
    sizes = [max(size.dim_value, 0) for size in source.type.tensor_type.shape.dim]
    if not sizes:
        raise NotApplicable(f"input '{source.name}' has no shape")
    if len(sizes) > 1 and sizes[0] == 0:
        sizes[0] = 1
    if 0 in sizes:
        raise NotApplicable(f"axis {sizes.index(0)} of input '{source.name}' has no fixed size")
    return tuple(sizes)
