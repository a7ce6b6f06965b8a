"""Inputs on another scale than a network was trained on: each kind is noticed, and honest networks pass."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.checkpoint import SHIPPED
from models.data import load_data
from models.input_scale import scale_signs
from models.probes import signs
from models.sources.base import Prepared
from models.threat import Box, ThreatModel

MEAN, STD = 0.1307, 0.3081
EMBEDDED = {"mnist": "mnist5k", "mnist-3-7": "mnist5k-3-7"}
QUICK = ("conv-small", "conv-small+polytope", "fc500-150-10+adversarial-pgd", "linear-3-7", "mlp-tanh")
SHIPPED_NAMES = sorted(json.loads(card.read_bytes())["name"] for card in SHIPPED.glob("*.json"))


def panel(name: str = "mnist5k", start: int = 0) -> Batch:
    data = load_data(name)
    return data.batch(data.panel(start + 100)[start:])


def after(scale: float, shift: float, name: str = "resnet-small") -> nn.Sequential:
    """A shipped network as if it had been trained on scale x + shift: folded into its first convolution."""
    network = load(ModelName.parse(name)).network
    first = network[0]
    assert isinstance(first, nn.Conv2d)
    padded = nn.Conv2d(1, first.out_channels, first.kernel_size, first.stride)  # type: ignore[arg-type]
    with torch.no_grad():
        weight = first.weight / scale
        bias = -shift * weight.sum((1, 2, 3)) + (0.0 if first.bias is None else first.bias)
        padded.weight.copy_(weight)
        padded.bias.copy_(bias)  # type: ignore[union-attr]
    # What x = 0 around the picture was becomes the shift.
    width = first.padding[0]
    return nn.Sequential(nn.ConstantPad2d(int(width), shift), padded, *list(network)[1:]).eval()


class Affine(nn.Module):
    """A network behind scale x + shift."""

    def __init__(self, network: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.network, self.scale, self.shift = network, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.scale * x + self.shift)


def normalised(network: nn.Module) -> nn.Module:
    return Affine(network, 1 / STD, -MEAN / STD)


def declared(network: nn.Module) -> nn.Module:
    return Prepared.around(network, {"mean": MEAN, "std": STD}, "line").eval()


def said(network: nn.Module, box: Box | None = None) -> list[str]:
    batch = panel()
    if box is not None:
        batch = Batch(batch.x * box.width + box.lower, batch.y, batch.index)
    with torch.no_grad():
        return list(scale_signs(Classifier(network, num_classes=10, box=box or Box()), batch))


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "missing, with batch normalisation": (lambda: after(1 / STD, -MEAN / STD), "times the variance"),
    "missing, for [-1, 1]": (lambda: after(2, -1), "add @box=-1,1"),
    "missing, for [0, 255]": (lambda: after(255, 0), "times the variance"),
    "missing, seen by the accuracy": (lambda: after(2, -1, "conv-small"), "right as they come, 9"),
    "bytes, seen by the accuracy": (lambda: after(255, 0, "lenet"), "in [0, 255]: add @box=0,255"),
    "bytes, divided inside": (
        lambda: Affine(load(ModelName.parse("lenet")).network, 1 / 255, 0),
        "seems to want [0, 255], add @box=0,255",
    ),
    "declared, not wanted": (
        lambda: declared(load(ModelName.parse("resnet-small")).network),
        "times the variance",
    ),
    "declared and inside": (lambda: declared(normalised(after(1 / STD, -MEAN / STD, "lenet"))), "twice"),
    "twice inside": (lambda: normalised(normalised(after(1 / STD, -MEAN / STD, "lenet"))), "twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_scale_is_noticed(case: str) -> None:
    make, message = WRONG[case]
    (line,) = said(make())
    assert message in line


HONEST: dict[str, Callable[[], nn.Module]] = {
    "normalised inside": lambda: normalised(after(1 / STD, -MEAN / STD)),
    "normalised as declared": lambda: declared(after(1 / STD, -MEAN / STD)),
    "in [-1, 1]": lambda: Prepared.around(after(2, -1), {"box": [-1, 1]}, "line"),
    "in [0, 255]": lambda: Prepared.around(after(255, 0), {"box": [0, 255]}, "line"),
    "in [0, 255], divided inside": lambda: Prepared.around(
        Affine(after(1, 0), 1 / 255, 0), {"box": [0, 255]}, "line"
    ),
    "in [-1, 1], normalised inside": lambda: Prepared.around(
        Affine(normalised(after(1 / STD, -MEAN / STD)), 0.5, 0.5), {"box": [-1, 1]}, "line"
    ),
}


@pytest.mark.parametrize("case", HONEST)
def test_the_right_scale_is_left_in_peace(case: str) -> None:
    assert said(HONEST[case]().eval()) == []


def test_a_box_of_bytes_is_no_mistake() -> None:
    assert said(Affine(after(1, 0), 1 / 255, 0).eval(), Box(0, 255)) == []
    assert said(after(255, 0), Box(0, 255)) == []


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SHIPPED_NAMES],
)
def test_no_shipped_network_gives_a_sign_but_those_that_saturate_on_purpose(name: str) -> None:
    """Defensive distillation and its teacher are known to hide their gradients by large logits."""
    zoo = ModelName.parse(name)
    family = zoo.parts()[0].data
    if family not in EMBEDDED:
        pytest.skip(f"no images of {family} are embedded")
    found = signs(load(zoo), panel(EMBEDDED[family], 200), ThreatModel("linf", "8/255"))
    saturated = zoo.parts()[1].name in ("temperature", "distillation")
    assert [sign.word for sign in found] == (["saturated"] if saturated else [])
