"""Families of data sets: what fits what, and what no training is begun with."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from defenses.training_data import check_training
from defenses.zoo import training_data
from models.architecture import MODELS
from models.data import DATA, Dataset, load_data
from models.discover import import_modules
from models.errors import UserError
from models.families import FAMILIES, Family, unfit

import_modules("models")


def test_every_architecture_and_family_names_data_that_exists() -> None:
    for name in MODELS:
        assert MODELS[name].data in FAMILIES
    for family in FAMILIES.values():
        assert {family.training, family.test, *family.judged} <= set(DATA.names())
        assert not family.excluded or family.excluded in family.judged


def test_a_network_judges_its_own_family_and_the_users_data_alone() -> None:
    assert unfit("mnist", "mnist5k") is None
    assert unfit("cifar10", "cifar10-jpeg") is None
    assert unfit("mnist", "npz:mine.npz") is None
    assert "trained for mnist-3-7" in str(unfit("mnist-3-7", "mnist5k"))
    assert "not for gtsrb" in str(unfit("mnist", "gtsrb"))


def test_threes_and_sevens_are_those_of_the_embedded_images() -> None:
    both, whole = load_data("mnist5k-3-7"), load_data("mnist5k")
    assert both.labels.bincount().tolist() == [500, 500]
    sevens = whole.pixels[whole.labels == 7]
    assert torch.equal(both.pixels[both.labels == 1], sevens)
    assert both.classes == ("3", "7")


def toy(labels: list[int], shape: tuple[int, ...] = (1, 28, 28), value: float = 0.5) -> Dataset:
    return Dataset("toy", torch.full((len(labels), *shape), value), torch.tensor(labels), 10)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (toy(list(range(10)), (3, 32, 32)), "takes"),
        (toy([0, 1, 2, 4, 5, 6, 7, 8, 9]), "no image of class 3"),
        (toy(list(range(10)), value=float("nan")), "NaN"),
    ],
)
def test_data_that_cannot_train_is_refused_before_any_step(data: Dataset, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_training(data, data, MODELS["lenet"])


def test_what_judges_draw_from_is_left_out_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = load_data("mnist5k-3-7")
    extra = dataclasses.replace(
        judged,
        pixels=torch.cat([judged.pixels[:5], 255 - judged.pixels[:3]]),
        labels=torch.cat([judged.labels[:5], judged.labels[:3]]),
    )
    monkeypatch.setitem(DATA._entries, "planted", lambda root, download: extra)
    left = training_data(Family("planted", "mnist", (), "mnist5k-3-7"), None)
    assert len(left) == 3
