"""The ONNX file run by onnxruntime in its own precision: the judge of our reading of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from models.errors import UserError
from models.onnx.reader import OnnxNetwork, load_model

AGREEMENT, IN_HALVES = 1e-4, 1e-2
POINTS = 8
KINDS = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class Runtime:
    """An onnxruntime session on one thread; raises UserError where it refuses the file."""

    def __init__(self, path: Path, read: OnnxNetwork) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.path, self.inputs = path, read.inputs
        self.targets = [port.name for port in read.targets]
        content = _loadable(path, self.targets)
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            kinds = {value.name: value.type for value in self.session.get_inputs()}
            self.dtypes = [KINDS.get(kinds[port.name], np.float32) for port in self.inputs]
            self.outputs(torch.zeros(1, *read.shape))
        except Exception as error:
            # onnxruntime has no public base class for what it raises.
            raise UserError(f"onnxruntime refuses {path}: {str(error).splitlines()[0]}") from None

    def outputs(self, x: Tensor) -> Tensor:
        """The file's outputs (n, outputs) in float64 for inputs (n, ...), one sample at a time."""
        rows = []
        ends = list(itertools.accumulate(port.size for port in self.inputs))
        for sample in x.numpy().reshape(len(x), -1):
            given = {
                port.name: sample[end - port.size : end].astype(dtype).reshape(port.shape)
                if port.value is None
                else port.value
                for port, end, dtype in zip(self.inputs, ends, self.dtypes, strict=True)
            }
            found = self.session.run(self.targets, given)
            rows.append(np.concatenate([np.asarray(value, dtype=np.float64).reshape(-1) for value in found]))
        return torch.from_numpy(np.stack(rows))


def _loadable(path: Path, targets: Sequence[str]) -> bytes | str:
    """What onnxruntime is to load: the file itself where it may, else its content.

    All targets are outputs there. onnxruntime takes a size of 0 or -1, by which some exporters mean an
    open one, at its word.
    """
    model = load_model(path)
    sizes = [
        size
        for value in [*model.graph.input, *model.graph.output]
        for size in value.type.tensor_type.shape.dim
        if size.HasField("dim_value") and size.dim_value <= 0
    ]
    for size in sizes:
        size.ClearField("dim_value")
    hidden = [name for name in targets if name not in {value.name for value in model.graph.output}]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in hidden)
    changed = bool(sizes or hidden) or path.suffix == ".gz"
    return model.SerializeToString() if changed else str(path)


def check_agreement(
    read: OnnxNetwork, runtime: Runtime, lower: Tensor, upper: Tensor, seed: int = 0
) -> float:
    """The largest difference on random points between lower and upper (both of the input's shape).

    Relative to the outputs' size; raises UserError where it is above AGREEMENT.
    """
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(POINTS, *read.shape, generator=generator, dtype=torch.float64)
    share[POINTS // 2 :] = share[POINTS // 2 :].round()
    x = lower.double() + share * (upper - lower).double()
    theirs = runtime.outputs(x)
    with torch.no_grad():
        ours = read.network(x.to(_dtype(read))).double()
    if theirs.shape != ours.shape:
        raise UserError(
            f"{runtime.path}: read with {ours.shape[1]} outputs, onnxruntime gives {theirs.shape[1]}"
        )
    if not bool(torch.isfinite(theirs).all()):
        raise UserError(
            f"{runtime.path} returns NaN or infinity on inputs of the property: check its weights"
        )
    error = float(((ours - theirs).abs().amax(1) / theirs.abs().amax(1).clamp(min=1.0)).max())
    if not error <= (IN_HALVES if np.float16 in runtime.dtypes else AGREEMENT):
        raise UserError(
            f"{runtime.path} is misread: {error:.2g} away from onnxruntime on random points (report this)"
        )
    return error


def _dtype(read: OnnxNetwork) -> torch.dtype:
    tensors = [*read.network.parameters(), *read.network.buffers()]
    return tensors[0].dtype if tensors else torch.float32
