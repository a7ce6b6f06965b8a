"""Loads a defended model by name, `lenet+adversarial-pgd`, training it once where its weights are absent."""

from __future__ import annotations

import logging
import platform
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from defenses.base import DEFENSES, Defense
from defenses.inputs import INPUT_DEFENSES, InputDefense, defended
from defenses.training import TrainingStep, accuracy, channels_last, new_network, train
from defenses.training_data import check_training
from models.architecture import MODELS, Architecture
from models.atomic import stem
from models.base import Classifier
from models.checkpoint import (
    SHIPPED,
    claimed,
    load_weights,
    places,
    read_card,
    save_weights,
    training_lock,
)
from models.data import Dataset, load_data, without
from models.discover import import_modules
from models.errors import UserError
from models.families import FAMILIES, Family
from models.naming import Term, read_terms
from models.recipe import Recipe
from models.registry import Registry, suggest

import_modules("models")
import_modules("defenses")

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelName:
    """A zoo member: an architecture, the defence it is trained with, and those at its input, first one first.

    Defences are written with the parameters that differ from their defaults: interval(eps=0.3). Where
    several train, each goes on from the weights that the one before it left: interval+adversarial-pgd.
    """

    architecture: str
    defense: str = "none"
    inputs: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> ModelName:
        """Reads "lenet", "lenet+adversarial-pgd", "lenet+mixup+trades" or "lenet+none+sparsify(keep=0.05)".

        Raises UserError for unknown names, parameters or values, and for training behind an input defence.
        """
        first, *rest = read_terms(text)
        if first.chosen:
            raise UserError(f"'{text}': a model takes no parameters, its defences do")
        terms = [_settled(term) for term in rest]
        trained = [term for term in terms if term.name in DEFENSES]
        if terms[: len(trained)] != trained:
            raise UserError(f"'{text}': defences that train come first, those at the input follow them")
        if len(trained) > 1 and any(term.name == "none" for term in trained):
            raise UserError(f"'{text}': none trains on from nothing: leave it out")
        defense = "+".join(map(str, trained)) or "none"
        inputs = tuple(str(term) for term in terms[len(trained) :])
        return ModelName(MODELS[first.name].name, defense, inputs)

    def __str__(self) -> str:
        return "+".join((self.trained, *self.inputs))

    @property
    def trained(self) -> str:
        """The name of the weights: without what stands at the input."""
        return self.architecture if self.defense == "none" else f"{self.architecture}+{self.defense}"

    @property
    def start(self) -> ModelName | None:
        """The member whose weights the last defence goes on from; None where it starts from nothing."""
        *before, _ = map(str, read_terms(self.defense))
        return ModelName(self.architecture, "+".join(before)) if before else None

    def parts(self) -> tuple[Architecture, Defense]:
        """The architecture and the defence that trains it last; raises UserError where one does not fit."""
        architecture = MODELS[self.architecture]
        for term in read_terms(self.defense):
            defense = _built(DEFENSES, str(term))
            reason = defense.refuses(architecture)
            if reason:
                raise UserError(f"{term} cannot train {self.architecture}: {reason}")
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


def training_data(family: Family, root: Path | None, download: bool = False) -> Dataset:
    """The family's training images, less those that judges draw from."""
    data = load_data(family.training, root, download)
    return without(data, load_data(family.excluded)) if family.excluded else data


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
    """Trains `name`, measures it on its family's test images and stores weights and card.

    Yields progress; resumes from the last finished epoch of an interrupted run.
    """
    if name.inputs:
        raise UserError(f"{', '.join(name.inputs)} is not trained: train {name.trained}")
    architecture, defense = name.parts()
    recipe, family = recipe_of(architecture, defense), FAMILIES[architecture.data]
    data, test = training_data(family, root, download), load_data(family.test, root, download)
    check_training(data, test, architecture)
    network, start = new_network(architecture, seed), name.start
    origin = _begin(network, start, root, device, download, folder) if start else None
    resume = folder / ".training" / f"{stem(str(name))}.checkpoint"
    seconds = None
    run = train(network, defense, recipe, data, seed=seed, device=device, resume=resume, origin=origin)
    with claimed(name.trained, folder):
        for step in run:
            seconds = step.seconds
            yield step
    accuracies = {f"{family.test.replace('-', '_')}_test_{len(test)}": accuracy(network, test, device)}
    if family.excluded:
        accuracies[family.excluded] = accuracy(network, load_data(family.excluded), device)
    card = {
        "name": str(name),
        "architecture": architecture.name,
        "defense": {"name": defense.name, **defense.parameters()},
        "recipe": recipe.model_dump(),
        "origin_sha256": origin,
        "seed": seed,
        "data": f"{data.name} without {family.excluded}" if family.excluded else data.name,
        "data_sha256": data.sha256,
        "excluded": family.excluded,
        "excluded_images": len(load_data(family.excluded)) if family.excluded else 0,
        "accuracies": accuracies,
        "version": suite_version(),
        "torch": torch.__version__,
        "seconds": seconds and round(seconds, 1),
        "machine": machine(device),
    }
    save_weights(str(name), network.state_dict(), card, folder)
    resume.unlink(missing_ok=True)


def recipe_of(architecture: Architecture, defense: Defense) -> Recipe:
    """How `defense` trains, on images that vary as the architecture's own recipe has them."""
    varied = {"augmentation": architecture.recipe.augmentation}
    return defense.recipe(architecture).model_copy(update=varied)


def home(name: ModelName, folder: Path) -> Path | None:
    """Where the weights of `name` are: in `folder`, else among those that ship; None if nowhere."""
    return next((place for place in (folder, SHIPPED) if read_card(name.trained, place)), None)


def _begin(
    network: nn.Module, start: ModelName, root: Path | None, device: str, download: bool, folder: Path
) -> str:
    """Gives `network` the weights of `start`, those in `folder` before shipped ones; returns their hash."""
    place = home(start, folder) or folder
    network.load_state_dict(
        load(start, root=root, device=device, download=download, folder=place).network.state_dict()
    )
    card = read_card(str(start), place)
    assert card is not None
    return card.weights_sha256


def machine(device: str) -> str:
    """What trains on `device`, in words: the accelerator's name, or how many threads of which processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {platform.machine()}"


def load(
    name: ModelName,
    *,
    device: str = "cpu",
    root: Path | None = None,
    download: bool = False,
    folder: Path = SHIPPED,
) -> Classifier:
    """The trained classifier `name`, in eval mode on `device`.

    Weights that are absent are trained once, which a warning says: a second process waits at the lock and
    then reads what the first one made. Raises UserError for damaged weights.
    """
    architecture, _ = name.parts()
    fronts, weights = name.fronts(), replace(name, inputs=())
    if read_card(name.trained, folder) is None:
        with training_lock(name.trained, folder):
            if read_card(name.trained, folder) is None:
                _train_first(weights, root, device, download, folder)
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


def _train_first(name: ModelName, root: Path | None, device: str, download: bool, folder: Path) -> None:
    """Makes weights that are absent, which a warning says; a refusal says that they were the reason."""
    try:
        for number, _ in enumerate(make(name, root, device=device, download=download, folder=folder)):
            if not number:
                LOG.warning(_begun(name.trained))
    except UserError as reason:
        others = _alike(name)
        known = f" (there are those of {', '.join(others)})" if others else ""
        raise UserError(f"{name} has no weights{known}, and to train it: {reason}") from None


def _alike(name: ModelName) -> list[str]:
    """The members whose weights ship and that differ from `name` in parameters alone."""
    kinds = [term.name for term in read_terms(name.trained)]
    stems = (card.stem for card in sorted(SHIPPED.glob("*.json")) if "~" not in card.stem)
    return [other for other in stems if [term.name for term in read_terms(other)] == kinds]


def _begun(name: str) -> str:
    command = f"python -m bench train {shlex.quote(name)}"
    return f"{name} has no weights: it is trained first ({command} would show how far it is)"


def classifier(network: nn.Module, architecture: Architecture, name: str) -> Classifier:
    """`network` as a classifier that is ready to be judged."""
    return Classifier(channels_last(network).eval(), num_classes=architecture.num_classes, name=name).eval()
