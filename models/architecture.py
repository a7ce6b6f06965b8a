"""The registry of network architectures: a name, a constructor, an input shape and a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from models.recipe import Recipe
from models.registry import Registry


@dataclass(frozen=True)
class Architecture:
    """One family member: `build()` returns an untrained network for inputs of `input_shape` (c, h, w).

    data is the family of data sets that it is trained and judged on (models.families).
    """

    name: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    num_classes: int
    paper: str
    recipe: Recipe
    data: str = "mnist"


MODELS: Registry[Architecture] = Registry("model")


def register_model(
    name: str,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    paper: str,
    recipe: Recipe,
    data: str = "mnist",
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Registers the decorated constructor under `name`."""

    def decorate(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        MODELS.add(name, Architecture(name, build, input_shape, num_classes, paper, recipe, data))
        return build

    return decorate
