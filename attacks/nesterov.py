"""Nesterov's look-ahead and scaled copies: momentum whose points transfer better."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.base import register_attack
from attacks.directions import Direction, Iterate
from attacks.momentum import Momentum
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, vector_norm


@dataclass(frozen=True)
class Ahead:
    """The mean gradient over darker copies of a point `length` velocities ahead of the iterate."""

    length: float
    copies: int
    norm: str

    @property
    def elsewhere(self) -> bool:
        return self.length > 0

    def __call__(self, at: Iterate) -> Tensor:
        box, point, total = at.model.box, at.z, at.gradient
        if self.elsewhere:
            flat = vector_norm(at.z.new_ones(1, at.z[0].numel()), self.norm)
            point = box.clamp(at.z + self.length * at.z[0].numel() / flat * at.velocity)
            total = at.gradient_at(point)
        for copy in range(1, self.copies):
            scale = 0.5**copy
            total = total + scale * at.gradient_at(box.clamp(box.lower + scale * (point - box.lower)))
        return total / self.copies


@register_attack("nesterov")
@dataclass(frozen=True, kw_only=True)
class Nesterov(Momentum):
    """Momentum on the mean gradient over darker copies of a point ahead, for transfer (SI-NI-FGSM).

    g_{t+1} = decay g_t + G / ||G||_1 with G the mean over i < `copies` of grad J(S_i(x'), y) in x', where
    x' = x_t + a decay g_t d / ||1||_p lies ahead; then as `momentum`. S_i(x) = x / 2^i where the box begins
    at 0, elsewhere l + (x - l) / 2^i: towards its lower end l, which is black throughout the suite, so that
    neither scale nor origin of the units matters. The factor d / ||1||_p for d entries is not printed:
    without it the l1 norm makes the look-ahead a d-th of a step. The authors' code divides by the mean of
    |G| instead, which is the same in linf. x' is clipped to the box. `copies` = 1 is NI-FGSM, without
    `look_ahead` it is SI-MI-FGSM, and with 1 copy and no look-ahead momentum. Each copy costs a forward and
    a backward pass a step, and the verdict on x_t itself a forward pass where the step looks ahead.
    Source: Lin et al. 2020, 1908.06281, section 3 and algorithm 1.
    """

    paper = "Lin et al. 2020, 1908.06281"

    copies: int = 5
    look_ahead: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies < 1:
            raise UserError(f"{self.name} needs copies >= 1, not {self.copies}: 1 is the point itself")

    def direction(self, batch: Batch, threat: ThreatModel, randomness: Randomness) -> Direction:
        length = self.decay * threat.radius / self.steps if self.look_ahead else 0.0
        return Ahead(length, self.copies, threat.norm)
