"""The contract of a defence at the input: it changes what a trained network sees, and not its weights."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from defenses.parameters import check_parameters
from models.architecture import Architecture
from models.base import Classifier
from models.registry import Registry
from models.threat import UNIT_BOX


@dataclass(frozen=True, kw_only=True)
class InputDefense(ABC):
    """Frozen hyper-parameters and a front end, which stands before the network.

    stochastic says that two passes through the front may differ. A defence that stands around the network
    and not before it writes `around` in place of `front`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """A subclass that checks more calls this first. Raises UserError for what is no number here."""
        check_parameters(self)

    def front(self, architecture: Architecture) -> nn.Module:
        """Maps images (n, c, h, w) in [0, 1] to images that the network sees, of the same shape and range."""
        return nn.Identity()

    def surrogate(self, front: nn.Module) -> nn.Module | None:
        """What an adversary differentiates in place of `front`; None where its own gradient is right.

        StraightThrough(front) follows the front forward and the identity backward (BPDA).
        """
        return None

    def around(self, model: Classifier, architecture: Architecture) -> tuple[nn.Module, nn.Module | None]:
        """The defended network, and what adversaries differentiate instead where its gradient is wrong."""
        front = self.front(architecture).to(model.device).eval()
        surrogate = self.surrogate(front)
        network = nn.Sequential(front, model.network)
        if surrogate is None and model.surrogate is None:
            return network, None
        return network, nn.Sequential(surrogate or front, model.surrogate or model.network)

    def refuses(self, architecture: Architecture) -> str | None:
        """Why this defence cannot stand before `architecture`, or None."""
        return None

    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return asdict(self)


INPUT_DEFENSES: Registry[type[InputDefense]] = Registry("defense")


def register_input_defense(name: str) -> Callable[[type[InputDefense]], type[InputDefense]]:
    """Registers the decorated class (outermost decorator) under `name`."""

    def decorate(cls: type[InputDefense]) -> type[InputDefense]:
        cls.name = name
        return INPUT_DEFENSES.add(name, cls)

    return decorate


class Clamped(nn.Module):
    """The nearest point of [0, 1] to each entry: for fronts whose images may leave the box a little."""

    def forward(self, x: Tensor) -> Tensor:
        return UNIT_BOX.clamp(x)


class StraightThrough(nn.Module):
    """`front` forward, the identity backward: the backward pass of BPDA.

    Source: Athalye, Carlini, Wagner 2018, 1802.00420, section 4.1.1.
    """

    def __init__(self, front: nn.Module) -> None:
        super().__init__()
        self.front = front

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.front(x) - x).detach()


def defended(model: Classifier, defense: InputDefense, architecture: Architecture, name: str) -> Classifier:
    """`model` behind the defence's front end, its surrogate and randomness declared to adversaries.

    Defences compose: the last one stands in front of all the others.
    """
    network, surrogate = defense.around(model, architecture)
    return Classifier(
        network,
        num_classes=model.num_classes,
        box=model.box,
        name=name,
        stochastic=model.stochastic or defense.stochastic,
        surrogate=surrogate,
    ).eval()
