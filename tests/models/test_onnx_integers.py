"""Networks between integers: onnxruntime's levels, bounds that hold, attacks that see through."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from attacks.pgd import PGD
from attacks.strongest import Strongest
from models.base import Batch, Classifier
from models.errors import UserError
from models.onnx.reader import convert, read
from models.onnx.runtime import Runtime
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.models.onnx_integer_cases import CASES, MICROSOFT, Levels, convolved, drawn
from tests.models.test_onnx_operators import check_bounds, compare


@pytest.mark.parametrize("case", CASES)
def test_an_operator_between_integers_is_onnxruntimes_and_bounded(case: str, tmp_path: Path) -> None:
    file, opset, _ = CASES[case]
    check_bounds(compare(file.write(tmp_path / "net.onnx", opset)), jumps=True)


class Small(nn.Module):
    """Convolutions, a sum, a concatenation, pooling, gates: what the quantiser has an operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.third = nn.Conv2d(8, 6, 3, stride=2)
        self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        x = nn.functional.max_pool2d(torch.cat([x, torch.sigmoid(x)], 1), 2)
        x = nn.functional.leaky_relu(self.third(x), 0.1)
        y = self.inner(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return self.last(torch.relu(y) * torch.sigmoid(y))


class Calibration:
    """Random images for the quantiser."""

    def __init__(self) -> None:
        images = np.random.default_rng(0).random((8, 1, 1, 8, 8), dtype=np.float32)
        self.images: Iterator[dict[str, np.ndarray]] = iter([{"x": image} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image, None at the end."""
        return next(self.images, None)


def dense() -> nn.Module:
    """A network whose answers the input moves."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 3))
    for layer in (layers[1], layers[3]):
        nn.init.normal_(layer.weight, std=0.5)
    return layers


def quantised(
    folder: Path,
    way: str,
    activations: str,
    weights: str,
    channels: bool,
    network: Callable[[], nn.Module] = Small,
) -> Path:
    """A network as onnxruntime's quantiser writes it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    torch.manual_seed(0)
    plain, path = folder / "plain.onnx", folder / "quantised.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network().eval(), (torch.rand(1, 1, 8, 8),), str(plain), dynamo=False, opset_version=13,
            input_names=["x"],
        )  # fmt: skip
    logging.disable(logging.WARNING)
    try:
        if way == "dynamic":
            quantize_dynamic(plain, path, weight_type=QuantType[weights], per_channel=channels)
        else:
            quantize_static(
                plain, path, Calibration(), quant_format=QuantFormat[way], per_channel=channels,
                activation_type=QuantType[activations], weight_type=QuantType[weights],
                extra_options={"UseQDQContribOps": activations == "QUInt16"},
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return path


@pytest.mark.parametrize(
    ("way", "activations", "weights", "channels"),
    [
        pytest.param("QOperator", "QUInt8", "QInt8", False, marks=pytest.mark.slow),
        pytest.param("QOperator", "QUInt8", "QUInt8", False, marks=pytest.mark.slow),
        ("QOperator", "QInt8", "QInt8", True),
        pytest.param("QDQ", "QInt8", "QInt8", True, marks=pytest.mark.slow),
        ("QDQ", "QUInt16", "QInt16", False),
        pytest.param("dynamic", "QUInt8", "QUInt8", False, marks=pytest.mark.slow),
        ("dynamic", "QUInt8", "QInt8", True),
    ],
)
def test_what_onnxruntimes_quantiser_writes_gives_its_numbers_and_is_bounded(
    way: str, activations: str, weights: str, channels: bool, tmp_path: Path
) -> None:
    path = quantised(tmp_path, way, activations, weights, channels)
    nodes = onnx.load(path).graph.node
    kinds = {node.op_type for node in nodes}
    assert any(node.domain == MICROSOFT for node in nodes) == (way == "QOperator" or activations == "QUInt16")
    assert {"QOperator": "QLinearConv", "QDQ": "QuantizeLinear", "dynamic": "ConvInteger"}[way] in kinds
    network = read(path)
    x = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = Runtime(path, network).outputs(x)
    with torch.no_grad():
        ours = network.network(x.float()).double()
    away = ((ours - theirs).abs() > 1e-6).any(1)
    # A sum at the very middle of two levels may fall to either.
    assert away.sum() <= 1
    assert len(theirs.unique(dim=0)) > 10
    check_bounds(network, jumps=True)


def test_attacks_see_through_levels(tmp_path: Path) -> None:
    """Its own gradient is zero; what is found is next to what is found without the rounding."""
    rounded = read(quantised(tmp_path, "QOperator", "QUInt8", "QInt8", False, dense)).network
    plain = read(tmp_path / "plain.onnx").network
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    found = []
    for network, attack in ((plain, PGD()), (rounded, PGD()), (rounded, Strongest())):
        judged = Classifier(network, num_classes=3)
        batch = Batch.of(x, judged.logits(x).argmax(1))
        found.append(int(attack.run(judged, batch, ThreatModel("linf", 0.3), Randomness(0)).success.sum()))
    assert found[0] > 10
    assert found[1] < 0.5 * found[0]
    assert found[2] >= 0.8 * found[0]


def refused(operator: str, *places: str, domain: str = "", **attributes: object) -> onnx.ModelProto:
    """An operator on the levels, their scale and zero point, and what `places` name."""
    file = Levels(1, 2, 5, 4)
    named = {
        "weights": lambda: file.exact(drawn(3, 2, 3, 2), np.int8),
        "scale": lambda: file.constant(np.float32(0.01)),
        "zero": lambda: file.exact(0, np.int8),
        "zeros": lambda: file.exact([0, 1], np.uint8),
        "float": lambda: file.constant(0.0),
        "matrix": lambda: file.exact(drawn(4, 3), np.int8),
        "value": lambda: file.levels,
    }
    file.add(
        operator, file.levels, *file.pair, *(named[place]() for place in places), domain=domain, **attributes
    )
    return file.model()


REFUSED = {
    "several zero points of an output": (
        refused("QLinearConv", "weights", "scale", "zero", "scale", "zeros"), "QLinearConv .*2 zero points",
    ),
    "an output of floats": (
        refused("QLinearMatMul", "matrix", "scale", "zero", "scale", "float"), "QLinearMatMul .*float32",
    ),
    "channels last": (
        refused("QLinearGlobalAveragePool", "scale", "zero", domain=MICROSOFT, channels_last=1),
        "QLinearGlobalAveragePool .*second axis",
    ),
    "a constant joined": (
        refused("QLinearConcat", "weights", "scale", "zero", domain=MICROSOFT, axis=1),
        "QLinearConcat .*joins a constant, input 2",
    ),
    "another operator of that domain": (
        refused("QLinearSoftmax", "scale", "zero", domain=MICROSOFT, axis=1),
        "QLinearSoftmax .*'com.microsoft' is not understood",
    ),
    "a missing input": (refused("QLinearConv"), "QLinearConv .*no constant as input 3"),
    "weights that are values": (
        refused("QLinearConv", "value", "scale", "zero", "scale", "zero"),
        "QLinearConv .*no constant as input 3",
    ),
    "weights of another size": (
        convolved(1, 2, 5, 4, weight=(3, 5, 3, 2)).model(), "QLinearConv .*does not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_between_integers_is_refused_by_name(case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        convert(content)
    assert "\n" not in str(refusal.value)
