"""Operators beyond the plain ones: onnxruntime's own numbers, and bounds that hold or a refusal by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from certify.crown import Crown
from certify.ibp import IntervalBounds
from defenses import zoo
from models.errors import UserError
from models.onnx.conversion import OPERATORS, Conversion, Known
from models.onnx.reader import OnnxNetwork, convert, read
from models.onnx.runtime import Runtime
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, margins_of, model, smallest_margins
from tests.models.onnx_cases import BOUNDED, IMAGE, JUMPING, joined, largest, one, resized, two
from tests.models.onnx_cases import CASES as COMMON
from tests.models.onnx_files import File
from tests.models.onnx_rare_cases import CASES as RARE
from tests.models.onnx_rare_cases import branching, looping, recurrent

CASES = COMMON | RARE


def points(n: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(n, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1


def compare(path: Path) -> OnnxNetwork:
    """Outputs as onnxruntime's, for one sample and for five at once."""
    network = read(path)
    x = points(5, *network.shape)
    theirs = Runtime(path, network).outputs(x)
    assert theirs.isfinite().all()
    with torch.no_grad():
        for some in (x, x[2:3]):
            ours = network.network(some.float()).double()
            assert torch.allclose(ours, theirs if len(some) == 5 else theirs[2:3], rtol=1e-5, atol=2e-5)
    return network


def check_bounds(network: OnnxNetwork, jumps: bool = False) -> None:
    """Bounds that no point undercuts: the margins themselves where nothing may move, or `jumps`."""
    judged = model(network.network, classes=network.outputs)
    data = batch(2, network.shape, classes=network.outputs)
    threat = ThreatModel("linf", 0.1)
    least, _ = smallest_margins(judged, data, threat, samples=20, steps=0)
    with torch.no_grad():
        own = margins_of(judged.network, data.x, data.y)
    others = torch.arange(network.outputs) != data.y[:, None]
    for certifier in (IntervalBounds(), Crown()):
        lower, still = (
            certifier.run(judged, data, around, Randomness(0)).lower[others]
            for around in (threat, ThreatModel("linf", 0.0))
        )
        assert (lower <= least[others] + 1e-5).all()
        away = (still.float() - own[others]).abs() > 1e-4
        assert (still.float() <= own[others] + 1e-4).all()
        assert not away.any() or (jumps and not away.all())


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_onnxruntimes_and_bounded_or_refused_by_name(case: str, tmp_path: Path) -> None:
    file, opset, refusal = CASES[case]
    network = compare(file.write(tmp_path / "net.onnx", opset))
    if refusal in (BOUNDED, JUMPING):
        check_bounds(network, refusal is JUMPING)
        return
    judged = model(network.network, classes=network.outputs)
    with pytest.raises(UserError, match=rf"operation '{refusal}'") as error:
        Crown().run(
            judged, batch(2, network.shape, classes=network.outputs), ThreatModel("linf", 0.1), Randomness(0)
        )
    assert "\n" not in str(error.value)


class Attention(nn.Module):
    """A small vision transformer: patches, a class token, one block of attention, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 5, 8))
        self.norm, self.last = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mixed, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.place
        query, key, value = self.mixed(self.norm(tokens)).chunk(3, -1)
        tokens = tokens + torch.softmax(query @ key.transpose(1, 2) / 8**0.5, -1) @ value
        return self.head(self.last(tokens)[:, 0])


EXPORTED: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.Hardswish(), nn.AvgPool2d(4, ceil_mode=True),
        nn.Flatten(), nn.Linear(24, 3),
    ),
    "instance norm": lambda: nn.Sequential(
        nn.ReflectionPad2d(2), nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Hardsigmoid(),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Flatten(), nn.Linear(144, 3),
    ),
    "decoder": lambda: nn.Sequential(
        nn.ReplicationPad2d((1, 0, 2, 1)), nn.Conv2d(1, 2, 3, 2), nn.GELU(), nn.Upsample(scale_factor=2),
        nn.Conv2d(2, 2, 3), nn.Upsample((11, 13), mode="bilinear"), nn.Flatten(), nn.Linear(286, 3),
    ),
}  # fmt: skip


def export(network: nn.Module, path: Path, *shape: int, opset: int = 17) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.rand(1, *shape),)
        torch.onnx.export(network.eval(), example, str(path), dynamo=False, opset_version=opset)
    return path


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_module_comes_back(name: str, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = EXPORTED[name]().eval()
    back = compare(export(network, tmp_path / "net.onnx", 1, 8, 8, opset=opset))
    x = points(5, 1, 8, 8).float()
    with torch.no_grad():
        assert torch.allclose(back.network(x), network(x), atol=1e-5)
    check_bounds(back)


def test_the_shipped_maxout_network_is_read_and_bounded(tmp_path: Path) -> None:
    shipped = zoo.load(zoo.ModelName.parse("maxout"))
    back = read(export(shipped.network, tmp_path / "maxout.onnx", 1, 28, 28))
    data = batch(3, (1, 28, 28), classes=10)
    with torch.no_grad():
        assert torch.allclose(back.network(data.x), shipped.logits(data.x), atol=1e-4)
    again = model(back.network, classes=10)
    threat = ThreatModel("linf", 0.002)
    least, _ = smallest_margins(again, data, threat, samples=4, steps=1)
    lower = IntervalBounds().run(again, data, threat, Randomness(0)).lower
    others = torch.arange(10) != data.y[:, None]
    assert (lower <= least + 1e-5)[others].all()
    assert (least - lower)[others].max() < 10


def places() -> onnx.ModelProto:
    """A file that reads where the largest entries stand."""
    file = largest([1])
    file.add("Cast", "topk_0_1", to=1)
    return file.model()


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "cubic": (resized("cubic", scales=[1.0, 1.0, 2.0, 2.0]).model(), "Resize .*'cubic'"),
    "samples resized": (resized("nearest", scales=[2.0, 1.0, 1.0, 1.0]).model(), "Resize .*samples"),
    "cropped": (
        resized("linear", sizes=[1, 2, 3, 3], coordinate_transformation_mode="tf_crop_and_resize").model(),
        "Resize .*tf_crop_and_resize",
    ),
    "antialiased": (
        resized("linear", sizes=[1, 2, 3, 3], antialias=1).model(18),
        "Resize .*antialias",
    ),
    "a diagonal": (one("Einsum", equation="abcc->abc").model(), "Einsum .*'abcc->abc'"),
    "letters for fewer axes": (one("Einsum", equation="abc->abc").model(), "Einsum .*each axis"),
    "a letter of no input": (one("Einsum", equation="abcd->abce").model(), "Einsum .*each axis"),
    "updates that are added": (
        one("ScatterND", [[0, 1]], [5.0], shape=(1, 4), reduction="add").model(18),
        "ScatterND .*combines updates",
    ),
    "a branch by a value": (branching(None).model(), "If .*no constant as input 0"),
    "values of every round": (looping(collected=True).model(), "Loop .*collects"),
    "an activation without rule": (
        one(
            "RNN", *recurrent(3)[:2], shape=(3, 1, 2), outputs=2, hidden_size=3, activations=["Affine"]
        ).model(),
        "RNN .*Affine",
    ),
    "steps of two samples": (
        one("RNN", *recurrent(3)[:2], shape=(4, 2, 2), outputs=2, hidden_size=3).model(),
        "RNN .*one sample",
    ),
    "shrunk by something else": (one("Shrink", bias=0.2).model(), "Shrink .*bias 0.2 and lambd 0.5"),
    "two largest entries in any order": (largest([2], sorted=0).model(), "TopK .*sort them"),
    "no largest entries": (largest([0]).model(), "TopK .*of 0 entries"),
    "more entries than there are": (largest([7]).model(), "TopK .*does not fit"),
    "a label": (one("ArgMax", shape=(1, 4)).model(), "ArgMax .*cut the file before it.* returns 'x'"),
    "ones for a label": (one("Hardmax", shape=(1, 4)).model(), "Hardmax .*returns 'x'"),
    "a cubic norm": (one("LpNormalization", p=3).model(), "LpNormalization .*order 3"),
    "the norm of samples": (one("LpNormalization", axis=0).model(), "LpNormalization .*samples"),
    "a response of no size": (one("LRN").model(), "LRN .*malformed"),
    "infinite to no side": (
        one("IsInf", detect_positive=0, detect_negative=0).model(),
        "IsInf .*neither sign",
    ),
    "a diagonal of images": (one("EyeLike").model(), "EyeLike .*matrices"),
    "maxima over four axes": (
        one("MaxPool", shape=(1, 1, 2, 2, 2, 2), kernel_shape=[1, 1, 1, 1]).model(),
        "MaxPool .*4 axes",
    ),
    "where the largest entry stands": (places(), "Cast .*reads 'topk_0_1'"),
    "the largest sample": (largest([1], axis=0).model(), "TopK .*samples"),
    "an axis that is not there": (one("ReduceMax", axes=[4]).model(), "ReduceMax .*no axis 4"),
    "a word for a number": (one("LeakyRelu", alpha="steep").model(), "LeakyRelu .*malformed"),
    "more than there is": (
        one("ConvTranspose", np.ones((2, 1, 2, 2)), output_shape=[20, 20]).model(),
        "ConvTranspose .*less than its output shape",
    ),
    "samples normalised": (
        one("LayerNormalization", np.ones(IMAGE), axis=0).model(17),
        "LayerNormalization .*samples",
    ),
    "no broadcast": (two("Add", {"axes": [2, 3], "keepdims": 0}).model(), "Add .*do not broadcast"),
    "a constant that does not fit": (joined("x", np.ones((1, 1, 3)), axis=1).model(), "Concat .*fit"),
    "cropped by reflection": (
        one("Pad", [0, 0, -1, 0, 0, 0, 0, 0], mode="reflect").model(),
        "Pad .*reflect",
    ),
    "a window in the padding": (
        one("MaxPool", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 2, 0]).model(),
        "MaxPool .*padding alone",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        convert(content)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("shape", "message"), [((1, -1), "it mixes them"), ((1, 4), "not understood for several samples at once")]
)
def test_a_rule_that_mixes_samples_is_caught(
    shape: tuple[int, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixing(conversion: Conversion) -> Known:
        return conversion.call(torch.reshape, conversion.symbol(), shape)

    monkeypatch.setitem(OPERATORS, "Relu", mixing)
    with pytest.raises(UserError, match=message):
        convert(one("Relu", shape=(1, 4)).model())


def local_response(x: np.ndarray, size: int, alpha: float, bias: float = 1.0) -> np.ndarray:
    """LRN entry by entry: onnxruntime refuses even sizes, and ONNX's evaluator misreads it."""
    out = np.empty_like(x)
    for channel in range(len(x)):
        first, last = max(0, channel - (size - 1) // 2), min(len(x) - 1, channel + size // 2)
        total = (x[first : last + 1] ** 2).sum(0)
        out[channel] = x[channel] / (bias + alpha / size * total) ** 0.75
    return out


Double = tuple[str, tuple[int, ...], list[object], dict[str, object], Callable[..., np.ndarray]]
DOUBLES: dict[str, Double] = {
    "norm 1": (
        "LpNormalization", (2, 3), [], {"axis": 1}, lambda x: x / np.sqrt((x**2).sum(0, keepdims=True)),
    ),
    "local response": (
        "LRN", (5, 2, 2), [], {"size": 3, "alpha": 0.75, "bias": 1.125},
        lambda x: local_response(x, 3, 0.75, 1.125),
    ),
    "local response of an even size": (
        "LRN", (5, 2, 2), [], {"size": 4, "alpha": 0.75}, lambda x: local_response(x, 4, 0.75),
    ),
    "mean and variance": (
        "MeanVarianceNormalization", (2, 3, 4), [], {},
        lambda x: (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True),
    ),
    "two largest": ("TopK", (2, 5), [[2]], {}, lambda x: -np.sort(-x, -1)[:, :2]),
    "maxima of boxes": (
        "MaxPool", (1, 2, 2, 2), [], {"kernel_shape": [2, 1, 2]}, lambda x: x.max((1, 3), keepdims=True),
    ),
    "remainders": ("Mod", (6,), [0.3], {"fmod": 1}, lambda x: np.fmod(x, 0.3)),
    "arcsine": ("Asin", (6,), [], {}, np.arcsin),
    "hyperbolic cosine": ("Cosh", (6,), [], {}, np.cosh),
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBLES)
def test_in_double_precision_an_operator_is_what_numpy_makes_of_its_definition(case: str) -> None:
    """onnxruntime runs most of these in single precision alone."""
    name, shape, constants, attributes, expected = DOUBLES[case]
    file = File(1, *shape, kind=onnx.TensorProto.DOUBLE)
    more = [file.constant(value) for value in constants]
    file.add(name, "x", *more, outputs=1 + (name == "TopK"), **attributes)
    x = points(4, *shape)
    with torch.no_grad():
        ours = convert(file.model()).network(x)
    theirs = np.stack([expected(sample).reshape(-1) for sample in x.numpy()])
    assert ours.dtype == torch.float64
    assert torch.allclose(ours, torch.from_numpy(theirs), rtol=1e-12, atol=1e-13)
