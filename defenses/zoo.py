"""Loads a defended model by name, `lenet+adversarial-pgd`, training it once where its weights are absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock
from torch import nn

from defenses.base import DEFENSES, Defense
from defenses.inputs import INPUT_DEFENSES, InputDefense, defended
from defenses.training import TrainingStep, accuracy, channels_last, new_network, train
from models.architecture import MODELS, Architecture
from models.base import Classifier
from models.checkpoint import SHIPPED, load_weights, places, read_card, save_weights
from models.data import Dataset, load_data, without
from models.discover import import_modules
from models.errors import UserError
from models.naming import Term, read_terms
from models.registry import Registry, suggest

import_modules("models")
import_modules("defenses")

EXCLUDED = "mnist5k"


@dataclass(frozen=True)
class ModelName:
    """A zoo member: an architecture, the defence it is trained with, and those at its input, first one first.

    Defences are written with the parameters that differ from their defaults: interval(eps=0.3).
    """

    architecture: str
    defense: str = "none"
    inputs: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> ModelName:
        """Reads "lenet", "lenet+adversarial-pgd" or "lenet+none+sparsify(keep=0.05)".

        Raises UserError for unknown names, parameters or values, and where a network is trained twice.
        """
        first, *rest = read_terms(text)
        if first.chosen:
            raise UserError(f"'{text}': a model takes no parameters, its defences do")
        terms = [_settled(term) for term in rest]
        trained = [term for term in terms if term.name in DEFENSES]
        if len(trained) > 1 or (trained and trained[0] is not terms[0]):
            raise UserError(f"'{text}': the one defence that trains comes first, others stand at the input")
        defense = str(trained[0]) if trained else "none"
        inputs = tuple(str(term) for term in terms[len(trained) :])
        return ModelName(MODELS[first.name].name, defense, inputs)

    def __str__(self) -> str:
        return "+".join((self.trained, *self.inputs))

    @property
    def trained(self) -> str:
        """The name of the weights: without what stands at the input."""
        return self.architecture if self.defense == "none" else f"{self.architecture}+{self.defense}"

    def parts(self) -> tuple[Architecture, Defense]:
        """The architecture and the defence it is trained with; raises UserError where they do not fit."""
        architecture, defense = MODELS[self.architecture], _built(DEFENSES, self.defense)
        reason = defense.refuses(architecture)
        if reason:
            raise UserError(f"{self.defense} cannot train {self.architecture}: {reason}")
        return architecture, defense

    def fronts(self) -> list[InputDefense]:
        """The defences at the input, the one next to the network first; raises UserError for a refusal."""
        found = [_built(INPUT_DEFENSES, text) for text in self.inputs]
        for front in found:
            reason = front.refuses(MODELS[self.architecture])
            if reason:
                raise UserError(f"{front.name} cannot stand before {self.architecture}: {reason}")
        return found


D = TypeVar("D", bound=Defense | InputDefense)


def _settled(term: Term) -> Term:
    known = INPUT_DEFENSES if term.name in INPUT_DEFENSES else DEFENSES
    if term.name not in known:
        raise suggest("defense", term.name, sorted({*DEFENSES, *INPUT_DEFENSES}))
    return term.settled("defense", known[term.name]().parameters())


def _built(registry: Registry[type[D]], text: str) -> D:
    (term,) = read_terms(text)
    cls = registry[term.name]
    return cls(**dict(term.settled("defense", cls().parameters()).chosen))


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
    if name.inputs:
        raise UserError(f"{', '.join(name.inputs)} is not trained: train {name.trained}")
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
    fronts, weights = name.fronts(), replace(name, inputs=())
    if read_card(name.trained, folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name.trained}.lock"):
            if read_card(name.trained, folder) is None:
                for _ in make(weights, root, device=device, download=download, folder=folder):
                    pass
    network = architecture.build()
    try:
        network.load_state_dict(load_weights(name.trained, folder))
    except RuntimeError:
        raise UserError(
            f"weights of {weights} do not fit the network: delete {places(name.trained, folder)[0]}"
        ) from None
    model = classifier(network, architecture, str(name)).to(device)
    for front in fronts:
        model = defended(model, front, architecture, str(name))
    return model


def classifier(network: nn.Module, architecture: Architecture, name: str) -> Classifier:
    """`network` as a classifier that is ready to be judged."""
    return Classifier(channels_last(network).eval(), num_classes=architecture.num_classes, name=name).eval()
