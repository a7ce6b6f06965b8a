"""Defences that train one after the other: each goes on from the weights that the one before it left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from defenses import zoo
from defenses.zoo import ModelName, load, make
from models.architecture import MODELS, Architecture
from models.checkpoint import load_weights, read_card
from models.data import Dataset
from models.recipe import Recipe

DATA = Dataset("toy", torch.arange(64, dtype=torch.uint8).reshape(16, 1, 2, 2) * 4, torch.arange(16) % 2, 2)
FIRST = ModelName.parse("lenet+mixup")


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Registers `toy`; the list gets the weights that each training begins with."""
    found: list[dict[str, torch.Tensor]] = []
    train = zoo.train

    def watched(network: nn.Module, *arguments: Any, **named: Any) -> Iterator[Any]:
        found.append({key: value.clone() for key, value in network.state_dict().items()})
        yield from train(network, *arguments, **named)

    recipe = Recipe(epochs=2, batch_size=8)
    monkeypatch.setitem(MODELS._entries, "toy", Architecture("toy", small, (1, 2, 2), 2, "-", recipe))
    monkeypatch.setattr(zoo, "train", watched)
    monkeypatch.setattr(zoo, "training_data", lambda *_: DATA)
    monkeypatch.setattr(zoo, "load_data", lambda *_: DATA)
    return found


def test_names_keep_the_order_of_training() -> None:
    name = ModelName.parse("conv-small+interval(eps=0.3)+small-boxes+jpeg")
    assert str(name) == "conv-small+interval(eps=0.3)+small-boxes+jpeg"
    assert name.trained == "conv-small+interval(eps=0.3)+small-boxes"
    assert name.start == ModelName.parse("conv-small+interval(eps=0.3)")
    assert name.parts()[1].name == "small-boxes"
    assert FIRST.start is None
    assert ModelName.parse("lenet").start is None


def test_the_second_goes_on_from_the_weights_of_the_first(
    began: list[dict[str, torch.Tensor]], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first, second = ModelName.parse("toy+mixup"), ModelName.parse("toy+mixup+gaussian-noise")
    load(second, folder=tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert [text.split()[0] for text in said] == [str(first), str(second)]
    assert f"python -m bench train {second} " in said[1]
    load(second, folder=tmp_path)
    assert len(caplog.records) == 2
    left = load_weights(str(first), tmp_path)
    assert len(began) == 2
    assert all(torch.equal(began[1][key], left[key]) for key in left)
    assert not all(torch.equal(load_weights(str(second), tmp_path)[key], left[key]) for key in left)
    cards = [read_card(str(name), tmp_path) for name in (first, second)]
    assert cards[0] is not None
    assert cards[1] is not None
    assert cards[0].origin_sha256 is None
    assert cards[1].origin_sha256 == cards[0].weights_sha256
    assert cards[1].defense["name"] == "gaussian-noise"


def test_a_first_training_that_is_there_is_not_done_again(
    began: list[dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is taken from the folder of the second, else from the weights that ship."""
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    monkeypatch.setattr(zoo, "SHIPPED", shipped)
    for _ in make(ModelName.parse("toy+mixup"), None, folder=shipped):
        pass
    for _ in make(ModelName.parse("toy+mixup+gaussian-noise"), None, folder=own):
        pass
    assert len(began) == 2
    assert read_card("toy+mixup", own) is None
    for _ in make(ModelName.parse("toy+mixup"), None, folder=own, seed=1):
        pass
    for _ in make(ModelName.parse("toy+mixup+trades"), None, folder=own):
        pass
    left = load_weights("toy+mixup", own)
    assert all(torch.equal(began[3][key], left[key]) for key in left)


def test_a_stopped_run_is_not_continued_from_other_first_weights(
    began: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    second = ModelName.parse("toy+mixup+gaussian-noise")
    for step in make(second, None, folder=tmp_path):
        if step.epoch == 1:
            break
    assert next(make(second, None, folder=tmp_path)).epoch == 1
    for step in make(second, None, folder=tmp_path):
        if step.epoch == 1:
            break
    for _ in make(ModelName.parse("toy+mixup"), None, folder=tmp_path, seed=3):
        pass
    assert next(make(second, None, folder=tmp_path)).epoch == 0
