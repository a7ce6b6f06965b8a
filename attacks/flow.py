"""Spatially transformed adversarial examples: pixels that flow, instead of changing their values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.losses import against, margin_loss
from attacks.worst import Worst
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.flow import Flow
from models.randomness import Randomness
from models.threat import ThreatModel

ANGLES = 32
ACROSS = 4
"""At most so many rows of whole pixels up and down are tried; a wider disc gets a coarser lattice."""


def roughness(flow: Tensor) -> Tensor:
    """Eq. 4: the sum over pixels and their four neighbours of the distance of their vectors, (k,).

    flow is (k, 2, h, w); a neighbour beyond the picture counts as alike.
    """
    down, right = (torch.linalg.vector_norm(flow.diff(dim=axis), dim=1) for axis in (2, 3))
    return 2 * (down.flatten(1).sum(1) + right.flatten(1).sum(1))


def places(reach: float) -> Tensor:
    """Vectors (m, 2) in the disc of radius `reach`, the shortest first, where a pixel's best reading can be.

    Bilinear readings have no maximum within a cell of the lattice, and are linear along its sides: the best
    of a disc is at a lattice point or on the circle, tried at ANGLES places and where it cuts the sides.
    """
    stride = max(1, math.ceil(reach / ACROSS))
    whole = stride * torch.arange(-math.floor(reach / stride), math.floor(reach / stride) + 1).double()
    lattice = torch.cartesian_prod(whole, whole)
    turn = torch.arange(ANGLES).double() * 2 * math.pi / ANGLES
    cut = (reach**2 - whole.square()).clamp(min=0).sqrt()
    sides = [torch.stack(pair, 1) for pair in ((whole, cut), (whole, -cut), (cut, whole), (-cut, whole))]
    every = torch.cat([lattice, reach * torch.stack([turn.sin(), turn.cos()], 1), *sides])
    length = every.norm(dim=1)
    every, length = every[length <= reach * (1 + 1e-9)], length[length <= reach * (1 + 1e-9)]
    return every[length.argsort(stable=True)]


@register_attack("flow")
@dataclass(frozen=True, kw_only=True)
class SpatialFlow(Attack):
    """Moves pixels instead of changing their values: each is read from a place of its own nearby.

    Ascends max_{j != y} z_j - z_y - tau L_flow over flows f, L_flow = sum_p sum_{q next to p}
    ||f(p) - f(q)||_2, until the sample is misclassified; else the flow of greatest margin loss is proposed.
    The threat bounds every pixel's vector by eps, where the paper bounds nothing and takes L-BFGS with
    tau = 0.05: here each vector steps along its own gradient by `relative_step` eps, falling to 0 over
    `steps`, and is projected on its disc (the steepest step for this size; Adam breaks fewer), and tau is
    small, as the bound alone decides what is allowed. Each of the `restarts` starts at the best flow for the
    loss linearised in the image, the clean one first, then that of the best flow so far: every pixel takes
    the best reading in its disc by itself. Gradients do not find it: they know one cell of the lattice.
    Source: Xiao, Zhu, Li, He, Liu, Song 2018, 1801.02612, eq. 1 to 4; size: Alaifari et al. 2019, 1804.07729.
    """

    paper = "Xiao, Zhu, Li, He, Liu, Song 2018, 1801.02612"
    norms = ("flow",)
    cost = Cost.MEDIUM

    steps: int = 20
    restarts: int = 4
    relative_step: float = 0.5
    tau: float = 0.001

    def __post_init__(self) -> None:
        if self.relative_step <= 0 or self.tau < 0:
            raise UserError(
                f"flow needs relative_step > 0 and tau >= 0, not {self.relative_step:g} and {self.tau:g}"
            )

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        assert isinstance(threat, Flow)
        worst = Worst(batch, threat.parameters(batch.x))
        for _ in range(self.restarts):
            rows = worst.live()
            if not len(rows):
                break
            self._climb(model, batch, threat, worst, rows, _linearised(model, batch, threat, worst, rows))
        return worst.move

    def _climb(
        self, model: GradientAccess, batch: Batch, threat: Flow, worst: Worst, rows: Tensor, move: Tensor
    ) -> None:
        """`steps` steps from the moves (k, parameters) of the samples `rows` (k,)."""
        for step in range(self.steps):
            x, y = batch.x[rows], batch.y[rows]
            with torch.enable_grad():
                leaf = move.clone().requires_grad_(True)
                image = threat.carry_out(x, leaf, batch.index[rows])
                rough = self.tau * roughness(leaf.unflatten(1, (2, *x.shape[2:])))
            logits, _, slope = model.gradient(image.detach(), rows, against(margin_loss, y))
            ones = -torch.ones_like(rough)
            (ascent,) = torch.autograd.grad([image, rough], leaf, [slope, ones])
            worst.note(rows, move[:, None], logits)
            length = self.relative_step * threat.radius * (1 - step / self.steps)
            going = ~worst.broken[rows]
            rows, move = rows[going], threat.within(move + length * threat.steepest(ascent))[going]
            if not len(rows):
                return
        image = threat.carry_out(batch.x[rows], move, batch.index[rows])
        worst.note(rows, move[:, None], model.logits(image, rows))


def _linearised(model: GradientAccess, batch: Batch, threat: Flow, worst: Worst, rows: Tensor) -> Tensor:
    """The moves (k, parameters) best for the loss linearised at the images of the worst moves so far.

    The loss is then a sum over pixels, each of which reads where its own part is greatest.
    """
    x, index = batch.x[rows], batch.index[rows]
    image = threat.carry_out(x, worst.move[rows], index)
    _, _, slope = model.gradient(image, rows, against(margin_loss, batch.y[rows]))
    pixels = x[0, 0].numel()
    highest = torch.full((len(rows), pixels), -torch.inf, dtype=torch.float64, device=x.device)
    best = torch.zeros(len(rows), 2, pixels, dtype=torch.float64, device=x.device)
    for place in places(threat.radius).to(x.device):
        move = place.repeat_interleave(pixels).expand(len(rows), -1)
        value = (threat.carry_out(x, move, index).double() * slope).sum(1).flatten(1)
        better = value > highest
        highest = torch.where(better, value, highest)
        best = torch.where(better[:, None], place[:, None], best)
    return threat.within(best.flatten(1))
