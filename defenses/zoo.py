"""Loads a defended model by name, `lenet+adversarial-pgd`, training it once where its weights are absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from defenses.base import DEFENSES, Defense
from defenses.training import TrainingStep, accuracy, channels_last, new_network, train
from models.architecture import MODELS, Architecture
from models.base import Classifier
from models.checkpoint import SHIPPED, load_weights, places, read_card, save_weights
from models.data import Dataset, load_data, without
from models.discover import import_modules
from models.errors import UserError

import_modules("models")
import_modules("defenses")

EXCLUDED = "mnist5k"


@dataclass(frozen=True)
class ModelName:
    """A zoo member: an architecture and the defence it is trained with."""

    architecture: str
    defense: str = "none"

    @staticmethod
    def parse(text: str) -> ModelName:
        """Reads "lenet" or "lenet+adversarial-pgd"; raises UserError for unknown names."""
        architecture, _, defense = text.partition("+")
        name = ModelName(MODELS[architecture].name, defense or "none")
        DEFENSES[name.defense]
        return name

    def __str__(self) -> str:
        return self.architecture if self.defense == "none" else f"{self.architecture}+{self.defense}"

    def parts(self) -> tuple[Architecture, Defense]:
        """The architecture and the defence; raises UserError where one refuses the other."""
        architecture, defense = MODELS[self.architecture], DEFENSES[self.defense]()
        reason = defense.refuses(architecture)
        if reason:
            raise UserError(f"{self.defense} cannot train {self.architecture}: {reason}")
        return architecture, defense


def training_data(root: Path | None, download: bool = False) -> Dataset:
    """The 55,000 MNIST training images that are not among the embedded 5,000."""
    return without(load_data("mnist-train", root, download), load_data(EXCLUDED))


def suite_version() -> str:
    """The installed version of this project."""
    try:
        return version("rhobust")
    except PackageNotFoundError:
        return "unknown"


def make(
    name: ModelName,
    root: Path | None,
    *,
    seed: int = 0,
    device: str = "cpu",
    download: bool = False,
    folder: Path = SHIPPED,
) -> Iterator[TrainingStep]:
    """Trains `name`, measures it on MNIST's test images and stores weights and card.

    Yields progress; resumes from the last finished epoch of an interrupted run.
    """
    architecture, defense = name.parts()
    recipe = defense.recipe(architecture)
    data, test = training_data(root, download), load_data("mnist", root, download)
    network = new_network(architecture, seed)
    resume = folder / ".training" / f"{name}.checkpoint"
    yield from train(network, defense, recipe, data, seed=seed, device=device, resume=resume)
    card = {
        "name": str(name),
        "architecture": architecture.name,
        "defense": {"name": defense.name, **defense.parameters()},
        "recipe": recipe.model_dump(),
        "seed": seed,
        "data": f"{data.name} without {EXCLUDED}",
        "data_sha256": data.sha256,
        "excluded": EXCLUDED,
        "excluded_images": len(load_data(EXCLUDED)),
        "accuracies": {
            "mnist_test_10000": accuracy(network, test, device),
            "mnist5k": accuracy(network, load_data(EXCLUDED), device),
        },
        "version": suite_version(),
        "torch": torch.__version__,
    }
    save_weights(str(name), network.state_dict(), card, folder)
    resume.unlink(missing_ok=True)


def load(
    name: ModelName,
    *,
    device: str = "cpu",
    root: Path | None = None,
    download: bool = False,
    folder: Path = SHIPPED,
) -> Classifier:
    """The trained classifier `name`, in eval mode on `device`.

    Weights that are absent are trained once: a second process waits at the lock and then
    reads what the first one made. Raises UserError for damaged weights.
    """
    architecture, _ = name.parts()
    if read_card(str(name), folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            if read_card(str(name), folder) is None:
                for _ in make(name, root, device=device, download=download, folder=folder):
                    pass
    network = architecture.build()
    try:
        network.load_state_dict(load_weights(str(name), folder))
    except RuntimeError:
        raise UserError(
            f"weights of {name} do not fit the network: delete {places(str(name), folder)[0]}"
        ) from None
    return classifier(network, architecture, str(name)).to(device)


def classifier(network: nn.Module, architecture: Architecture, name: str) -> Classifier:
    """`network` as a classifier that is ready to be judged."""
    return Classifier(channels_last(network).eval(), num_classes=architecture.num_classes, name=name).eval()
