"""The contract of a defence: it changes how a network is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from defenses.parameters import check_parameters
from models.architecture import Architecture
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe
from models.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Defense(ABC):
    """Frozen hyper-parameters and a training loss.

    `loss` is the mean over the batch that the one training loop minimises; `progress` runs
    from 0 to 1 over training, for ramps. `randomness` belongs to the step.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    def __post_init__(self) -> None:
        """A subclass that checks more calls this first. Raises UserError for what is no number here."""
        check_parameters(self)

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        """The scalar to minimise on `batch`."""

    def before_training(self, network: nn.Module) -> None:
        """Called once before the first step: adds layers that only training needs."""
        return

    def after_training(self, network: nn.Module) -> None:
        """Called once after the last step, in eval mode: takes out again what `before_training` added."""
        return

    def after_step(self, network: nn.Module) -> None:
        """Called after every step of the optimizer: projects the weights, where a defence bounds them."""
        return

    def recipe(self, architecture: Architecture) -> Recipe:
        """How long and how fast to train; the architecture's own recipe unless a defence knows better."""
        return architecture.recipe

    def refuses(self, architecture: Architecture) -> str | None:
        """Why this defence cannot train `architecture`, or None."""
        return None

    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return asdict(self)


DEFENSES: Registry[type[Defense]] = Registry("defense")


def register_defense(name: str) -> Callable[[type[Defense]], type[Defense]]:
    """Registers the decorated class (outermost decorator) under `name`."""

    def decorate(cls: type[Defense]) -> type[Defense]:
        cls.name = name
        return DEFENSES.add(name, cls)

    return decorate


def check_radius(name: str, eps: float, overshoot: float = 1.0) -> None:
    """Raises UserError for an eps at which training reaches beyond the unit box, or a negative one.

    The radius rises to `overshoot` times eps.
    """
    radius = eps * overshoot
    if 0 <= radius <= 1:
        return
    if overshoot == 1:
        raise UserError(f"{name} cannot train at radius {eps:g}: images lie in [0, 1], give eps within it")
    raise UserError(
        f"{name} cannot train at radius {radius:g}: images lie in [0, 1], and eps={eps:g} times "
        f"overshoot={overshoot:g} leaves it: give eps up to {1 / overshoot:.3g}"
    )


def random_layer(architecture: Architecture) -> str | None:
    """Why no bound can be taken of `architecture` while it is trained, or None: dropout is random then."""
    modules = architecture.build().modules()
    if any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p for module in modules):
        return "its dropout is random while it is trained, and no bound holds of what is random"
    return None


def check_share(name: str, **shares: float) -> None:
    """Raises UserError for a share outside [0, 1]."""
    for key, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} needs {key} between 0 and 1, not {value:g}")
