"""Reads an ONNX file, plain or gzipped, as a network from (n, ...) to (n, outputs)."""

from __future__ import annotations

import gzip
import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import torch
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.checker import ValidationError
from torch import Tensor, fx, nn

import models.onnx.arithmetic
import models.onnx.choice
import models.onnx.control
import models.onnx.einsum
import models.onnx.indexing
import models.onnx.integers
import models.onnx.layers
import models.onnx.normalisation
import models.onnx.pooling
import models.onnx.quantisation
import models.onnx.recurrent
import models.onnx.reductions
import models.onnx.remainder
import models.onnx.resizing
import models.onnx.sampling
import models.onnx.shapes
import models.onnx.transformers
import models.onnx.triangles  # noqa: F401
from models.errors import NotApplicable, UserError
from models.onnx.chain import as_chain
from models.onnx.conversion import Conversion, Known, Symbol
from models.onnx.layers import linear
from models.onnx.patterns import with_gelu
from models.onnx.ports import DTYPES, Port, Told, chosen_sources


@dataclass(frozen=True)
class OnnxNetwork:
    """A network from a file: inputs (n, *shape), outputs (n, outputs), in eval mode.

    `inputs` are what the file declares; their entries, in order, are what VNN-LIB counts. One alone has
    `shape`, or (1, *shape) where the file keeps an axis of samples; several stand one behind the other in a
    row, in which those of constants are not read. `targets` are what is returned, one behind the other.
    """

    network: nn.Module
    shape: tuple[int, ...]
    inputs: tuple[Port, ...]
    targets: tuple[Port, ...]

    @property
    def outputs(self) -> int:
        return sum(port.size for port in self.targets)


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


def read(
    path: Path, inputs: Sequence[str] = (), targets: Sequence[str | None] = (), told: Sequence[Told] = ()
) -> OnnxNetwork:
    """The network in `path`; raises UserError, naming the operator, for what is not understood.

    The inputs and targets are the file's own, in its order, or those named: a target by any value's name, or
    None for the next of the file's outputs. `told` says of each input what is known beside the file.
    """
    model = load_model(path)
    try:
        return convert(model, inputs, targets, told)
    except NotApplicable as refusal:
        raise NotApplicable(f"{path}: {refusal}") from None
    except UserError as mistake:
        raise UserError(f"{path}: {mistake}") from None


def convert(
    model: ModelProto,
    inputs: Sequence[str] = (),
    targets: Sequence[str | None] = (),
    told: Sequence[Told] = (),
) -> OnnxNetwork:
    """The network of an ONNX model in memory."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    declared = [value for value in model.graph.input if value.name not in constants]
    sources = chosen_sources(declared, inputs, told)
    wanted = chosen_targets(model, targets)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    conversion = Conversion(next(DTYPES[port.element] for port in sources if port.value is None), opsets)
    conversion.values.update(constants)
    shape = _placed(conversion, sources)
    for node in _needed(with_gelu(model).graph, wanted):
        conversion.convert(node)
    varying = next(conversion.values[port.name] for port in sources if port.value is None)
    results, ports = _results(conversion, wanted, varying)
    row = conversion.call(torch.cat, results, 1) if len(results) > 1 else results[0]
    conversion.graph.output(row.node)
    for node in reversed(conversion.graph.nodes):
        # What a rule has left out may have none among the certificates'.
        if not node.users and node.op not in ("placeholder", "output"):
            conversion.graph.erase_node(node)
    network = fx.GraphModule(conversion.root, conversion.graph, "OnnxNetwork").eval()
    _check_samples(network, torch.full((2, *shape), 0.5, dtype=conversion.dtype), row.example.shape[1])
    chain = as_chain(network, torch.full((1, *shape), 0.5, dtype=conversion.dtype))
    return OnnxNetwork(chain, shape, sources, ports)


def _placed(conversion: Conversion, sources: Sequence[Port]) -> tuple[int, ...]:
    """Declares the inputs, several as stretches of one row; the shape of what the network takes."""
    if len(sources) == 1:
        (port,) = sources
        batched = len(port.shape) > 1 and port.shape[0] == 1
        shape = port.shape[1:] if batched else port.shape
        conversion.placeholder(port.name, shape, batched)
        return shape
    total = sum(port.size for port in sources)
    conversion.placeholder("", (total,), True)
    row, start = conversion.values[""], 0
    conversion.values[""] = None
    for port in sources:
        stretch = (slice(None), slice(start, start + port.size))
        start += port.size
        if port.value is not None:
            conversion.values[port.name] = port.value
            continue
        part = conversion.call(operator.getitem, row, stretch)
        conversion.values[port.name] = conversion.reshaped(part, port.shape)
    return (total,)


def chosen_targets(model: ModelProto, wanted: Sequence[str | None]) -> list[str]:
    """The names of the values that are asked for, a node's for its only output; by default the file's own."""
    outputs = [value.name for value in model.graph.output]
    if not outputs:
        raise NotApplicable("the network has 0 outputs (none): one or more are understood")
    made = {name for node in model.graph.node for name in node.output}
    own = {node.name: node.output[0] for node in model.graph.node if len(node.output) == 1}
    rest, found = iter(outputs), []
    for name in wanted or [None] * len(outputs):
        one = next(rest, None) if name is None else name if name in made else own.get(name)
        if one is None:
            raise UserError(
                f"there is no value '{name}' in the file"
                if name
                else f"the file has {len(outputs)} outputs only"
            )
        found.append(one)
    if None in wanted and next(rest, None) is not None:
        raise UserError(
            f"the file has {len(outputs)} outputs ({', '.join(outputs)}): name them all, in order"
        )
    return found


def _results(
    conversion: Conversion, names: Sequence[str], varying: Known
) -> tuple[list[Symbol], tuple[Port, ...]]:
    """The values as rows (n, entries), constants once for each sample of an input, and what the file has."""
    assert isinstance(varying, Symbol)
    found = [conversion.values.get(name) for name in names]
    moved = any(isinstance(value, Symbol) for value in found)
    rows, ports = [], []
    for name, value in zip(names, found, strict=True):
        if not moved or value is None:
            raise NotApplicable(f"output '{name}' does not depend on the input")
        ports.append(Port(name, tuple(value.shape), 0))
        rows.append(
            _row(conversion, value) if isinstance(value, Symbol) else _constant(conversion, value, varying)
        )
    return rows, tuple(ports)


def _row(conversion: Conversion, value: Symbol) -> Symbol:
    if value.example.dim() == 2:
        return value
    return conversion.call(torch.reshape, value, (-1, value.example.numel()))


def _constant(conversion: Conversion, value: np.ndarray, varying: Symbol) -> Symbol:
    """What no input moves, once for each sample of an input."""
    entries = conversion.tensor(value).reshape(-1)
    one = conversion.call(operator.getitem, _row(conversion, varying), (slice(None), slice(0, 1)))
    return linear(conversion, torch.zeros_like(entries)[:, None], entries, one)


def _needed(graph: GraphProto, targets: Sequence[str]) -> list[NodeProto]:
    """The nodes that the targets depend on, in order: of what is left out nothing has to be understood."""
    wanted, found = set(targets), []
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
