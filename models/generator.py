"""The registry of generators: what makes new images for labels, without knowing what changes a label."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from models.base import Batch
from models.poses import Poses
from models.randomness import Randomness
from models.registry import Registry
from models.threat import UNIT_BOX

# Maps labelled images x (n, c, h, w) in [0, 1] to as many new ones, each meant to be of its sample's class;
# draws depend on the sample's index alone.
Generator = Callable[[Batch, Randomness], Tensor]

GENERATORS: Registry[Generator] = Registry("generator")


def register_generator(name: str) -> Callable[[Generator], Generator]:
    """Registers the decorated generator under `name`."""

    def decorate(generator: Generator) -> Generator:
        return GENERATORS.add(name, generator)

    return decorate


@register_generator("poses")
def poses(batch: Batch, randomness: Randomness) -> Tensor:
    """Each image turned by up to 45 degrees and moved by up to a tenth of its side: some change class."""
    pose = 2 * randomness.uniform(batch.index, (3,)).to(batch.x) - 1
    return Poses(rotation=45.0, translation=0.1).apply(batch.x, pose, UNIT_BOX)
