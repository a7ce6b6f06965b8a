"""The shipped zoo: its weights are those of their cards, and the cards tell the truth."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from bench.weights import card_hash
from defenses.base import DEFENSES
from defenses.training import accuracy
from defenses.zoo import ModelName, load, recipe_of
from models.architecture import MODELS
from models.base import Classifier
from models.checkpoint import SHIPPED, ModelCard, places, read_card
from models.data import load_data
from models.errors import UserError
from models.families import FAMILIES
from models.naming import read_terms
from models.recipe import Recipe

NAMES = sorted(json.loads(card.read_bytes())["name"] for card in SHIPPED.glob("*.json"))
CLEAN = {"lenet": 0.990, "fc500-150-10": 0.980, "conv-small": 0.987, "lenet+adversarial-pgd": 0.98}
CLEAN["conv-small+polytope"] = 0.97
QUICK = ("conv-small", "conv-small+polytope", "fc500-150-10", "lenet", "linear-3-7", "mlp-sigmoid")
TRAINING_DATA = "0dcf8ec61dddb61495c32d4cb10aeda319a4275337ca5cc33e70450a3c44f0bb"


@lru_cache(maxsize=1)
def member(name: str) -> Classifier:
    return load(ModelName.parse(name))


def card_of(name: str) -> ModelCard:
    card = read_card(name)
    if card is None:
        pytest.skip(f"{name} is not trained")
    return card


def test_the_three_networks_are_shipped() -> None:
    assert {"lenet", "fc500-150-10", "conv-small"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_describes_its_weights(name: str) -> None:
    card = card_of(name)
    parsed = ModelName.parse(name)
    content = places(name)[0].read_bytes()
    assert hashlib.sha256(content).hexdigest() == card.weights_sha256
    assert card_hash(name) == card.weights_sha256[:16]
    assert card.name == str(parsed) == name
    assert card.architecture == parsed.architecture
    assert card.defense["name"] == read_terms(parsed.defense)[-1].name
    assert card.origin_sha256 == (card_of(str(parsed.start)).weights_sha256 if parsed.start else None)
    family = FAMILIES[MODELS[card.architecture].data]
    assert card.excluded == family.excluded
    if family.test == "mnist":
        assert (card.excluded_images, card.data_sha256) == (5000, TRAINING_DATA)


@pytest.mark.parametrize("name", NAMES)
def test_a_cards_recipe_is_that_of_the_project(name: str) -> None:
    """What `bench train` would do today is what made the shipped weights."""
    card = card_of(name)
    architecture, defense = ModelName.parse(name).parts()
    assert Recipe.model_validate(card.recipe) == recipe_of(architecture, defense)
    assert card.defense == {"name": defense.name, **defense.parameters()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_a_cards_accuracy_is_reproduced(name: str) -> None:
    """On the whole 5,000 images exactly, up to ties; the card was measured on the same ones."""
    card, model = card_of(name), member(name)
    assert not model.training
    if not card.excluded:
        pytest.skip("its data set is not embedded")
    assert accuracy(model, load_data(card.excluded)) == pytest.approx(
        card.accuracies[card.excluded], abs=0.002
    )


@pytest.mark.parametrize("name", CLEAN)
def test_clean_test_accuracy_reaches_what_was_asked(name: str) -> None:
    assert card_of(name).accuracies["mnist_test_10000"] >= CLEAN[name]


@pytest.mark.parametrize("name", [name for name in CLEAN if name in NAMES])
def test_the_cards_test_accuracy_is_reproduced_where_mnist_is(name: str) -> None:
    place = os.environ.get("RHOBUST_DATA")
    if place is None or not (Path(place) / "MNIST" / "raw").exists():
        pytest.skip("RHOBUST_DATA names no folder that holds MNIST/raw")
    measured = accuracy(member(name), load_data("mnist", Path(place)))
    assert measured == pytest.approx(card_of(name).accuracies["mnist_test_10000"], abs=0.0005)


@pytest.mark.parametrize("name", MODELS.names())
def test_an_architecture_maps_its_inputs_to_its_classes(name: str) -> None:
    architecture = MODELS[name]
    x = torch.rand(3, *architecture.input_shape)
    assert architecture.build()(x).shape == (3, architecture.num_classes)
    assert architecture.paper != ""


def count(name: str) -> int:
    return sum(parameter.numel() for parameter in MODELS[name].build().parameters())


def test_the_networks_are_those_of_the_papers() -> None:
    """Parameters counted by hand: weights plus biases of each layer."""
    assert count("lenet") == 20 * 26 + 50 * 501 + 500 * 801 + 10 * 501
    assert count("fc500-150-10") == 500 * 785 + 150 * 501 + 10 * 151
    assert count("conv-small") == 16 * 17 + 32 * 257 + 100 * (32 * 49 + 1) + 10 * 101


def test_names_are_parsed_and_mistakes_suggest() -> None:
    assert ModelName.parse("lenet") == ModelName.parse("lenet+none") == ModelName("lenet", "none")
    assert str(ModelName.parse("lenet+adversarial-pgd")) == "lenet+adversarial-pgd"
    with pytest.raises(UserError, match="did you mean lenet"):
        ModelName.parse("lennet")
    with pytest.raises(UserError, match="did you mean polytope"):
        ModelName.parse("lenet+polytop")
    with pytest.raises(UserError, match="max pooling"):
        ModelName.parse("lenet+polytope").parts()
    assert {"none", "adversarial-fgsm", "adversarial-pgd", "polytope"} <= set(DEFENSES.names())
