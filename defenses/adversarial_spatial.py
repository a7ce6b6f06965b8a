"""Adversarial training on rotations and translations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.losses import cross_entropy
from defenses.base import Defense, check_share, register_defense
from models.architecture import Architecture
from models.base import Batch, frozen
from models.errors import UserError
from models.poses import Poses
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import UNIT_BOX


@register_defense("adversarial-spatial")
@dataclass(frozen=True, kw_only=True)
class AdversarialSpatial(Defense):
    """Trains on the worst of `draws` random rotations and translations of each image.

    min_theta E[max_{k <= draws} L(f(T(x; a_k, s_k)), y)], the angles a_k uniform within +-`rotation` degrees
    and the shifts s_k within the share `translation` of a side, each image's own and fresh in every epoch;
    what moves in is black. draws = 1 is ordinary augmentation by random moves.
    Raises UserError for no draws, an angle outside [0, 180] or a share outside [0, 1].
    Source: Engstrom, Tran, Tsipras, Schmidt, Madry 2019, 1712.02779, section 4 (worst-of-10).
    """

    paper = "Engstrom, Tran, Tsipras, Schmidt, Madry 2019, 1712.02779, section 4"

    draws: int = 10
    rotation: float = 30.0
    translation: float = 0.1
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, translation=self.translation)
        if self.draws < 1:
            raise UserError(f"{self.name} needs at least one draw, not {self.draws}")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"{self.name} needs a rotation between 0 and 180 degrees, not {self.rotation:g}")

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        return functional.cross_entropy(network(self.worst(network, batch, randomness)), batch.y)

    def worst(self, network: nn.Module, batch: Batch, randomness: Randomness) -> Tensor:
        """Each image (n, c, h, w) in the pose of greatest loss among its own draws."""
        allowed = Poses(self.rotation, self.translation)
        poses = 2 * randomness.child("poses").uniform(batch.index, (self.draws, 3)).to(batch.x) - 1
        highest = batch.x.new_full((len(batch),), -torch.inf)
        worst = batch.x
        with frozen(network), torch.no_grad():
            for pose in poses.unbind(1):
                moved = allowed.apply(batch.x, pose, UNIT_BOX)
                value = cross_entropy(network(moved), batch.y)
                worst = torch.where((value > highest)[:, None, None, None], moved, worst)
                highest = torch.maximum(value, highest)
        return worst

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)

    def refuses(self, architecture: Architecture) -> str | None:
        return None if len(architecture.input_shape) == 3 else "its inputs are no images"
