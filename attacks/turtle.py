"""The turtle: a texture that fools the network from most sides of the object that wears it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.eot import EOT
from attacks.images import need_pictures
from attacks.losses import check_loss
from attacks.mesh import mesh_named
from attacks.rendering import Scene
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


@register_attack("turtle")
@dataclass(frozen=True, kw_only=True)
class Turtle(Attack):
    """Takes each image as the texture of a 3D object and fools the network from random sides of it.

    max E_{t ~ T} J(f(t(x')), y) within the ball around the texture, where t draws the object ("shell",
    "square" or a FILE.obj) in a random pose, light and background (`attacks.rendering.Scene`), by
    `eot`'s search.
    The verdict is on the texture seen flat; the score of a turtle is `eot.survival` with `scene` as its
    transform, on poses that the attack has not seen. Drawn, not printed. The margin as the loss fools more
    of them than cross-entropy: 67 against 56 % (conv-small, linf 0.15, 12 images, 30 steps, 4 draws).
    Source: Athalye, Engstrom, Ilyas, Kwok 2018, 1707.07397, section 2.3, with a ball in place of the
    penalty on the distance.
    """

    paper = "Athalye, Engstrom, Ilyas, Kwok 2018, 1707.07397"
    norms = ("linf", "l2")
    cost = Cost.EXTREME

    mesh: str = "shell"
    steps: int = 40
    draws: int = 8
    relative_step: float = 0.1
    patience: int = 5
    turn: float = 30.0
    roll: float = 15.0
    scale: float = 0.1
    shift: float = 0.05
    background: float = 0.1
    light: float = 0.3
    loss: str = "margin"

    def __post_init__(self) -> None:
        mesh_named(self.mesh)
        if min(self.steps, self.draws, self.patience) < 1:
            raise UserError("turtle needs steps, draws and patience >= 1")
        if (
            min(self.turn, self.roll, self.scale, self.shift, self.background, self.light) < 0
            or self.scale >= 1
        ):
            raise UserError("turtle needs ranges >= 0 and a scale < 1")
        check_loss(self.loss, "turtle")

    @property
    def scene(self) -> Scene:
        """The views that the expectation is over."""
        return Scene(self.mesh, self.turn, self.roll, self.scale, self.shift, self.background, self.light)

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        need_pictures(batch.x, self.name)
        search = EOT(
            steps=self.steps,
            draws=self.draws,
            relative_step=self.relative_step,
            patience=self.patience,
            loss=self.loss,
        )
        return search.ascend(model, batch, threat, randomness, self.scene)
