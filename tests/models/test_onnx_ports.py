"""Inputs of open sizes and constant ones: read by what is told beside the file, else refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from certify.graph import trace
from certify.ibp import IntervalPass
from models.errors import NotApplicable, UserError
from models.onnx.ports import Told
from models.onnx.reader import convert, read
from models.onnx.runtime import Runtime
from models.threat import ThreatModel
from tests.models.onnx_files import File


def pooled(*shape: int | str) -> File:
    """A convolution and the mean of what it makes, whatever the size of the image."""
    file = File(*shape)
    file.add("Conv", "x", file.weights(4, 3, 2, 2), file.weights(4), strides=[2, 1])
    file.add("Relu")
    file.add("GlobalAveragePool")
    file.add("Flatten")
    file.add("Gemm", file.last, file.weights(4, 3))
    return file


def same_outputs(path: Path, *told: Told) -> tuple[int, ...]:
    """The shape that the network was read with; its outputs are onnxruntime's."""
    network = read(path, told=told)
    x = torch.rand(4, *network.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ours = network.network(x.float()).double()
    assert torch.allclose(ours, Runtime(path, network).outputs(x), atol=1e-5)
    return network.shape


@pytest.mark.parametrize(
    ("shape", "told", "read_as"),
    [
        (("n", 3, "h", "w"), ((1, 3, 5, 6),), (3, 5, 6)),
        (("n", 3, -1, 0), ((1, 3, 7, 4),), (3, 7, 4)),
        (("n", 3, 5, "w"), ((60,),), (3, 5, 4)),
        (("n", "c", "h", "w"), ((9,), (1, 3, 5, 6)), (3, 5, 6)),
        (("n", 3, "h", "w"), ((1, 6, 5, 3), (1, 3, 6, 5)), (3, 6, 5)),
    ],
)
def test_open_sizes_are_those_of_the_first_shape_that_fits(shape, told, read_as, tmp_path):
    assert same_outputs(pooled(*shape).write(tmp_path / "net.onnx"), Told(told)) == read_as


@pytest.mark.parametrize(
    ("shape", "told", "message"),
    [
        (("n", 3, "h", "w"), (), "axis 2 of input 'x' has no fixed size$"),
        (("n", 3, "h", "w"), ((60,),), "axis 2 .* and 60 entries do not tell it: declare .* VNN-LIB 2.0"),
        (("n", 3, 5, "w"), ((61,),), "axis 3 .* and 61 entries do not tell it"),
        (("n", 3, "h", "w"), ((1, 4, 5, 6),), "axis 2 of input 'x' has no fixed size$"),
    ],
)
def test_sizes_that_nothing_tells_are_refused(shape, told, message):
    with pytest.raises(NotApplicable, match=message):
        convert(pooled(*shape).model(), told=[Told(told)])


def chosen_column(kind: int = TensorProto.INT64) -> onnx.ModelProto:
    """ReLUs of x (1, 4) and column `which` of another layer's outputs (1, 3), and that column's number."""
    file = File(1, 4)
    relu = file.add("Relu", file.add("Gemm", "x", file.weights(4, 3)))
    place = file.add("Cast", "which", to=TensorProto.INT64)
    column = file.add("Gather", file.add("Gemm", "x", file.weights(4, 3)), place, axis=1)
    file.add("Add", relu, column)
    model = file.model()
    model.graph.input.append(helper.make_tensor_value_info("which", kind, [1]))
    model.graph.output.append(helper.make_tensor_value_info(place, TensorProto.INT64, None))
    return model


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8])
@pytest.mark.parametrize("column", [0, 2])
def test_an_integer_that_is_told_is_a_constant_and_no_output_depends_on_it(kind, column, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(chosen_column(kind), str(path))
    told = [Told(((1, 4),)), Told(((1,),), (float(column),))]
    network = read(path, told=told)
    assert (network.shape, network.outputs) == ((5,), 4)
    assert [port.value is None for port in network.inputs] == [True, False]
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ours = network.network(x.float()).double()
    assert torch.allclose(ours, Runtime(path, network).outputs(x), atol=1e-5)
    assert ours[:, 3].tolist() == [column] * 4


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([], "'which' is of type INT64: only a property that fixes its value"),
        ([Told(), Told(((1,),), (0.5,))], "'which' is of type INT64, but is given 0.5"),
    ],
)
def test_integers_that_may_vary_are_refused(told, message):
    with pytest.raises(UserError, match=message):
        convert(chosen_column(), told=told)


def test_a_network_without_a_variable_is_refused():
    model = helper.make_graph(
        [helper.make_node("Cast", ["k"], ["y"], to=TensorProto.FLOAT)], "g",
        [helper.make_tensor_value_info("k", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    with pytest.raises(NotApplicable, match="no input of a floating type that varies"):
        convert(helper.make_model(model), told=[Told(value=(1.0, 2.0))])


def test_an_output_that_no_input_moves_stands_beside_one_that_it_does(tmp_path):
    file = File(1, 4)
    constant = file.add("Identity", file.constant(np.array([[1.5, -2.0]])))
    file.add("Reciprocal", file.add("Gemm", "x", file.weights(4, 3)))
    model = file.model()
    model.graph.output.insert(0, helper.make_tensor_value_info(constant, TensorProto.FLOAT, None))
    network = convert(model)
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network.network(x)
    assert found.shape == (3, 5)
    # Of a reciprocal across zero nothing is known, of a constant beside it everything.
    with torch.no_grad():
        graph = trace(network.network)
        passes = IntervalPass(graph, x, ThreatModel("linf", 1.0)).run()
        ends = [passes.step(i) for i in sorted(graph.tail)][-1]
    assert bool(torch.isinf(ends.upper[:, 2:]).any() | (ends.upper[:, 2:] > 1e6).any())
    assert ends.lower[:, :2].tolist() == ends.upper[:, :2].tolist() == [[1.5, -2.0]] * 3
    assert found[:, :2].tolist() == [[1.5, -2.0]] * 3
    del model.graph.output[1]
    with pytest.raises(NotApplicable, match="does not depend on the input"):
        convert(model)
