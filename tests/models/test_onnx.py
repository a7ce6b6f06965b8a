"""ONNX files read into PyTorch: what onnxruntime computes, on many samples at once, or a named refusal."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from certify.graph import trace
from models.errors import UserError
from models.onnx.reader import convert, read
from models.onnx.runtime import Runtime, check_agreement
from tests.certify.builders import FAMILIES, SHAPE, model
from tests.models.onnx_files import STYLES, File, acas


def points(n: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1


@pytest.mark.parametrize("style", STYLES)
def test_a_file_computes_what_onnxruntime_computes_and_can_be_traced(style: str, tmp_path: Path) -> None:
    path = STYLES[style]().write(tmp_path / "net.onnx")
    network = read(path)
    x = points(7, *network.shape)
    theirs = Runtime(path, network).outputs(x)
    with torch.no_grad():
        ours = network.network(x.float()).double()
        assert torch.allclose(ours, theirs, atol=1e-5)
        exact = network.network.double()(x)
    assert exact.shape == (7, network.outputs)
    assert torch.allclose(trace(network.network).values(x)[-1], exact, atol=1e-12)


# The exporter loses the threshold of "curved"'s softplus.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "curved"])
def test_an_exported_network_comes_back(family: str, tmp_path: Path) -> None:
    network, path = model(family).network, tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(1, *SHAPE),), str(path), dynamo=False, opset_version=17)
    back = read(path)
    x = points(5, *SHAPE)
    with torch.no_grad():
        assert torch.allclose(back.network.double()(x), network.double()(x), atol=1e-6)


def test_operators_one_by_one_agree_with_onnxruntime(tmp_path: Path) -> None:
    def one(operator: str, *more: object, shape: tuple[int, ...] = (1, 3, 4), **attributes: object) -> File:
        file = File(*shape)
        file.add(operator, "x", *(file.constant(value) for value in more), **attributes)
        return file

    image = (1, 2, 5, 6)
    cases = [one(name) for name in ("Relu", "Abs", "Elu", "Selu", "Erf", "Exp", "Softsign", "HardSwish")]
    cases += [one("Softmax", axis=2), one("LogSoftmax", axis=-1), one("Pow", 2.0), one("PRelu", [[0.3]])]
    cases += [one("MaxPool", shape=image, kernel_shape=[3, 2], pads=[1, 0, 1, 0], strides=[2, 1])]
    cases += [one("AveragePool", shape=image, kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    cases += [one("AveragePool", shape=image, kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1)]
    cases += [one("GlobalMaxPool", shape=image), one("ReduceSum", [1, -1], shape=image, keepdims=0)]
    weight = np.random.default_rng(1).standard_normal((2, 3, 3, 2))
    cases += [one("ConvTranspose", weight, shape=image, strides=[2, 3], output_padding=[1, 0])]
    cases += [one("Conv", weight[:, :, 0].transpose(1, 0, 2), shape=(1, 2, 7), dilations=[2], pads=[1, 1])]
    cases += [one("Transpose", shape=(1, 4), perm=[1, 0]), one("Transpose", perm=[1, 0, 2])]
    cases += [one("Gather", 1, axis=1), one("Gather", [1, 2], axis=-1), one("Gather", 0, axis=0)]
    cases += [one("Pad", [0, 0, 1, 0, 2, 0]), one("Flatten", axis=2), one("Unsqueeze", [0, 2])]
    cases += [one("Sub", [[1.0], [2.0], [3.0]]), one("MatMul", weight[0, 0, :, :].T, shape=(4, 2))]
    cases += [
        one("Gemm", weight[0, 0], shape=(3, 3), transA=1),
        one("Gemm", weight[0, 0], [[1.0], [2.0], [3.0]], shape=(3, 3)),
    ]
    for place, file in enumerate(cases):
        path = file.write(tmp_path / f"{place}.onnx", opset=14)
        network = read(path)
        x = points(4, *network.shape)
        theirs = Runtime(path, network).outputs(x)
        with torch.no_grad():
            ours = network.network(x.float()).double()
        assert torch.allclose(ours, theirs, atol=1e-5), file.nodes[0].op_type


def test_older_opsets_give_settings_as_attributes(tmp_path: Path) -> None:
    file = File(1, 4, 4)
    file.add("Clip", min=-0.25, max=0.5)
    file.add("Unsqueeze", axes=[1])
    file.add("Slice", starts=[1], ends=[3], axes=[2])
    file.add("Pad", pads=[0, 0, 0, 1, 0, 0, 0, 0], value=0.5)
    file.add("Squeeze", axes=[1])
    file.add("ReduceSum", axes=[2], keepdims=0)
    file.add("Dropout", ratio=0.5)
    path = file.write(tmp_path / "old.onnx", opset=9)
    network = read(path)
    x = points(4, 4, 4)
    with torch.no_grad():
        assert torch.allclose(
            network.network(x.float()).double(), Runtime(path, network).outputs(x), atol=1e-6
        )


def test_gzip_and_double_precision_are_read_as_they_are(tmp_path: Path) -> None:
    file = File(1, 6, kind=TensorProto.DOUBLE)
    file.add("MatMul", "x", file.weights(6, 3))
    path = tmp_path / "net.onnx.gz"
    path.write_bytes(gzip.compress(file.model().SerializeToString()))
    network = read(path)
    assert {parameter.dtype for parameter in network.network.parameters()} == {torch.float64}
    x = points(4, 6)
    with torch.no_grad():
        assert torch.allclose(network.network(x), Runtime(path, network).outputs(x), atol=1e-14)


@pytest.mark.parametrize("size", [0, -1])
def test_a_first_size_that_is_no_size_is_an_open_one(size: int, tmp_path: Path) -> None:
    file = File(size, 4)
    file.add("MatMul", "x", file.weights(4, 3))
    path = file.write(tmp_path / "net.onnx")
    network = read(path)
    assert (network.shape, network.inputs[0].shape) == ((4,), (1, 4))
    assert check_agreement(network, Runtime(path, network), torch.zeros(4), torch.ones(4)) < 1e-6


def test_half_precision_is_read_and_misread_all_the_same(tmp_path: Path) -> None:
    """A reading is held against onnxruntime's halves as exactly as halves are."""
    file = File(1, 20, kind=TensorProto.FLOAT16)
    draw = file.random.standard_normal((2, 20, 20)) / 20**0.5
    for weights in draw:
        file.add("Relu", file.add("MatMul", file.last, file.constant(weights, np.float16)))
    path = file.write(tmp_path / "net.onnx")
    network = read(path)
    low, high = torch.zeros(20), torch.ones(20)
    assert 1e-5 < check_agreement(network, Runtime(path, network), low, high) < 3e-3
    with torch.no_grad():
        next(network.network.parameters())[0] += 0.1
    with pytest.raises(UserError, match="misread"):
        check_agreement(network, Runtime(path, network), low, high)


def test_functions_that_a_file_defines_are_read(tmp_path: Path) -> None:
    file = File(1, 4)
    file.add("MatMul", "x", file.weights(4, 3))
    content = file.model()
    content.graph.node.append(helper.make_node("Bend", [file.last], ["bent"], domain="own"))
    content.graph.output[0].name = "bent"
    inner = [helper.make_node("Relu", ["a"], ["b"])]
    content.functions.append(
        helper.make_function("own", "Bend", ["a"], ["b"], inner, [helper.make_opsetid("", 13)])
    )
    content.opset_import.append(helper.make_opsetid("own", 1))
    path = tmp_path / "net.onnx"
    onnx.save(content, path)
    network = read(path)
    assert check_agreement(network, Runtime(path, network), -torch.ones(4), torch.ones(4)) < 1e-6


def test_a_chain_of_layers_becomes_one(tmp_path: Path) -> None:
    """MatMul and Add are one Linear; a file that goes another way, or adds something else, is no chain."""
    file = File(1, 1, 6, 6)
    file.add("Relu", file.add("Conv", "x", file.weights(2, 1, 3, 3), file.weights(2), strides=[2, 2]))
    file.add("Reshape", file.last, file.constant([1, -1]))
    file.add("MatMul", file.last, file.weights(8, 5))
    file.add("Relu", file.add("Add", file.weights(5), file.last))
    file.add("Gemm", file.last, file.weights(5, 3), file.weights(3))
    path = file.write(tmp_path / "net.onnx")
    network = read(path)
    kinds = [type(layer).__name__ for layer in network.network.children()]
    assert kinds == ["Conv2d", "ReLU", "Flatten", "Linear", "ReLU", "Linear"]
    low = torch.zeros(network.shape)
    assert check_agreement(network, Runtime(path, network), low - 1, low + 1) < 1e-6
    logits = file.last
    for name, more in (("Relu", []), ("Add", [file.weights(1)]), ("Add", ["flipped"]), ("Add", [logits])):
        file.last = logits
        if more == ["flipped"]:
            file.add("Neg")
            more = [file.last]
        file.add(name, logits, *more)
        assert not isinstance(convert(file.model()).network, nn.Sequential) or name == "Relu"
    # Nodes behind the output are no part of the network.
    content = file.model()
    content.graph.output[0].name = logits
    shorter = convert(content)
    assert [type(layer).__name__ for layer in shorter.network.children()] == kinds
    (tmp_path / "shorter.onnx").write_bytes(content.SerializeToString())
    assert check_agreement(shorter, Runtime(tmp_path / "shorter.onnx", shorter), low - 1, low + 1) < 1e-6


@pytest.mark.parametrize("half", ["last", "first"])
def test_a_gelu_that_is_spelled_out_is_recognised(half: str, tmp_path: Path) -> None:
    file = File(1, 4)
    z = file.add("Add", "x", file.constant([0.1, -0.2, 0.3, 0.0]))
    scaled = file.add("Div", z, file.constant(2**0.5))
    plus = file.add("Add", file.add("Erf", scaled), file.constant(1.0))
    if half == "last":
        file.add("Mul", file.add("Mul", z, plus), file.constant(0.5))
    else:
        file.add("Mul", file.add("Mul", z, file.constant(0.5)), plus)
    path = file.write(tmp_path / "net.onnx")
    network = read(path)
    x = 3 * points(9, 4)
    with torch.no_grad():
        assert torch.allclose(
            network.network(x.float()).double(), Runtime(path, network).outputs(x), atol=1e-5
        )
    assert torch.allclose(trace(network.network.double()).values(x)[-1], network.network(x), atol=1e-12)


@pytest.mark.parametrize("change", [{"divisor": 1.5}, {"one": 2.0}, {"half": 0.25}])
def test_what_only_looks_like_gelu_is_left_alone(change: dict[str, float], tmp_path: Path) -> None:
    numbers = {"divisor": 2**0.5, "one": 1.0, "half": 0.5} | change
    file = File(1, 4)
    scaled = file.add("Div", "x", file.constant(numbers["divisor"]))
    plus = file.add("Add", file.add("Erf", scaled), file.constant(numbers["one"]))
    file.add("Mul", file.add("Mul", "x", plus), file.constant(numbers["half"]))
    path = file.write(tmp_path / "net.onnx")
    network = read(path)
    x = 3 * points(9, 4)
    with torch.no_grad():
        assert torch.allclose(
            network.network(x.float()).double(), Runtime(path, network).outputs(x), atol=1e-5
        )
    # What is no GELU is read as the product that it is.
    graph = trace(network.network.double())
    assert torch.allclose(graph.values(x)[-1], network.network(x), atol=1e-12)


def test_a_clip_at_the_largest_float_is_no_bound(tmp_path: Path) -> None:
    file = File(1, 3)
    file.add("Clip", "x", file.constant(0.0), file.constant(3.4028234663852886e38))
    network = read(file.write(tmp_path / "net.onnx"))
    x = torch.tensor([[-1.0, 1 / 3, 2.0]], dtype=torch.float64)
    assert torch.equal(trace(network.network.double()).values(x)[-1], x.clamp(min=0))


def refused(*shape: int, opset: int = 13, **nodes: object) -> onnx.ModelProto:
    file = File(*shape)
    ((operator, arguments),) = nodes.items()
    inputs, attributes = arguments  # type: ignore[misc]
    file.add(operator, "x", *(file.constant(value) for value in inputs), **attributes)
    return file.model(opset)


REFUSED = {
    "an operator": (refused(1, 4, Det=([], {})), r"Det \('det_0_0'\) of domain 'ai.onnx' is not understood"),
    "no entries": (refused(1, 4, Gather=([np.zeros(0, np.int64)], {"axis": 1})), r"Gather .*\(0,\)"),
    "statistics of the batch": (
        refused(1, 4, opset=9, BatchNormalization=([np.ones(4)] * 4, {"outputs": 5})),
        "BatchNormalization .*training mode mixes samples",
    ),
    "no broadcast": (refused(1, 4, Add=([np.ones((3, 2))], {})), r"Add .*\(3, 2\), which do not broadcast"),
    "samples backwards": (refused(1, 4, Slice=([[-1], [-9], [0], [-1]], {})), "Slice .*samples"),
    "reflected too far": (refused(1, 4, Pad=([[0, 4, 0, 1]], {"mode": "reflect"})), "Pad .*4 entries"),
    "an open axis": (File(1, "height", 3).model(), "axis 1 of input 'x'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        convert(content)
    assert "\n" not in str(refusal.value)


def test_files_that_are_no_networks_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read(tmp_path / "absent.onnx")
    for name, content in (("net.onnx", b"not onnx at all"), ("net.onnx.gz", b"\x1f\x8bshort")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as refusal:
            read(tmp_path / name)
        assert "\n" not in str(refusal.value)
    apart = acas().model()
    onnx.save(apart, tmp_path / "apart.onnx", save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "w").unlink()
    short = acas().model()
    short.graph.initializer[1].raw_data = short.graph.initializer[1].raw_data[:-4]
    onnx.save(short, tmp_path / "short.onnx")
    for name, message in (
        ("apart.onnx", "apart.onnx cannot be read"),
        ("short.onnx", "'constant_1' is damaged"),
    ):
        with pytest.raises(UserError, match=message) as refusal:
            read(tmp_path / name)
        assert "\n" not in str(refusal.value)
    constant = File(1, 3)
    constant.add("Add", constant.constant([1.0]), constant.constant([2.0]))
    with pytest.raises(UserError, match="does not depend on the input"):
        convert(constant.model())
    two = acas().model()
    two.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1, 5]))
    with pytest.raises(UserError, match=r"2 inputs \(x, second\): 1 are named"):
        convert(two, ["second"])
    with pytest.raises(UserError, match="no input 'third': the file has x, second"):
        convert(two, ["x", "third"])
    with pytest.raises(UserError, match="no value 'hidden'"):
        convert(two, (), ["hidden", None])


def test_a_wrong_reading_and_weights_that_are_nan_are_noticed(tmp_path: Path) -> None:
    path = acas().write(tmp_path / "net.onnx")
    network = read(path)
    low, high = torch.zeros(network.shape), torch.ones(network.shape)
    assert check_agreement(network, Runtime(path, network), low, high) < 1e-6
    weight = next(network.network.parameters())
    with torch.no_grad():
        weight[0, 0] += 0.1
    with pytest.raises(UserError, match="misread"):
        check_agreement(network, Runtime(path, network), low, high)
    file = File(1, 2)
    file.add("MatMul", "x", file.constant([[float("nan")], [1.0]]))
    broken = file.write(tmp_path / "nan.onnx")
    again = read(broken)
    with pytest.raises(UserError, match="NaN"):
        check_agreement(again, Runtime(broken, again), low.flatten()[:2], high.flatten()[:2])
