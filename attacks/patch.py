"""Patches: perturbations that live in one region of the image and are exactly zero elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.images import as_images
from attacks.losses import LOSSES, against, check_loss, margin_loss
from models.base import Batch, margin
from models.cost import Cost
from models.errors import UserError
from models.pixels import FreePixels
from models.randomness import Randomness
from models.threat import ThreatModel, per_sample


def uphill(
    model: GradientAccess, z: Tensor, rows: Tensor, y: Tensor, loss: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the values of `loss` and its gradients at z (k, ...); the margin's where its own is zero.

    A network that is sure leaves no other class any probability in single precision, and cross-entropy no
    gradient: one more gradient of those samples.
    """
    logits, value, gradient = model.gradient(z, rows, against(LOSSES[loss], y))
    flat = (gradient == 0).flatten(1).all(1).nonzero()[:, 0]
    if loss != "margin" and len(flat):
        _, _, gradient[flat] = model.gradient(z[flat], rows[flat], against(margin_loss, y[flat]))
    return logits, value, gradient


def climb_within(
    model: GradientAccess,
    batch: Batch,
    rows: Tensor,
    mask: Tensor,
    start: Tensor,
    threat: ThreatModel,
    *,
    loss: str,
    steps: int,
    step_size: float,
) -> tuple[Tensor, Tensor]:
    """Projected steepest ascent from `start` on the entries where `mask` (k, ...) is True and on no other.

    Returns the misclassified point, or else the one of greatest loss, of every sample of `rows` (k, ...), and
    which it is (k,). A sample leaves when it is misclassified.
    """
    best, broken = start.clone(), torch.zeros(len(rows), dtype=torch.bool, device=start.device)
    highest = torch.full((len(rows),), -torch.inf, device=start.device)
    live, z = torch.arange(len(rows), device=start.device), start
    for step in range(steps + 1):
        y = batch.y[rows[live]]
        if step < steps:
            logits, value, gradient = uphill(model, z, rows[live], y, loss)
        else:
            logits = model.logits(z, rows[live])
            value = LOSSES[loss](logits, y)
        wrong = margin(logits, y) < 0
        take = wrong | (value > highest[live])
        best[live[take]], highest[live[take]] = z[take], value[take].to(highest)
        broken[live] = wrong
        if step == steps or bool(wrong.all()):
            break
        live, z, gradient = live[~wrong], z[~wrong], gradient[~wrong]
        move = threat.steepest(torch.where(mask[live], gradient, 0.0))
        z = threat.project(batch.x[rows[live]], z + step_size * move)
    return best, broken


def square_size(image: Tensor, area: float) -> tuple[int, int]:
    """Height and width of the squarest window that covers the share `area` of images (n, c, h, w)."""
    h, w = image.shape[2:]
    height = min(max(round((area * h * w) ** 0.5), 1), h)
    return height, min(max(round(area * h * w / height), 1), w)


def window_mask(x: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """True in the window of each input x (k, ...) whose corner is at top (k,), left (k,): as x."""
    image = as_images(x)
    row = torch.arange(image.shape[2], device=x.device) - top[:, None]
    column = torch.arange(image.shape[3], device=x.device) - left[:, None]
    inside = ((row >= 0) & (row < size[0]))[:, :, None] & ((column >= 0) & (column < size[1]))[:, None]
    return inside[:, None].expand(image.shape).reshape(x.shape)


def most_promising(
    x: Tensor, gradient: Tensor, threat: ThreatModel, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The corner (top, left), each (k,), of the window in which the linearised loss rises most."""
    if threat.norm == "l2":
        gain = gradient.square()
    else:
        lower, upper = threat.bounds(x)
        gain = gradient * torch.where(gradient > 0, upper - x, lower - x)
    total = functional.avg_pool2d(as_images(gain).sum(1, keepdim=True), size, stride=1)
    place = total.flatten(1).argmax(1)
    return place // total.shape[3], place % total.shape[3]


def _check(name: str, steps: int, loss: str) -> None:
    if steps < 1:
        raise UserError(f"{name} needs steps >= 1")
    check_loss(loss, name)


@register_attack("patch")
@dataclass(frozen=True, kw_only=True)
class Patch(Attack):
    """Changes one window of each image, and not a bit outside it; eps as wide as the box sets it free.

    max J(f(x + M d), y) within ball and box, M a window of the share `area` of the pixels (under the threat
    "patch": a square of the share eps, its entries free in the box), by projected steepest ascent in it,
    `relative_step` eps a step. Of `places` windows the first is where the linearised loss rises most (1
    gradient); the others, each for the samples that still hold, lie anywhere. A sample leaves at its first
    misclassification. Where the loss has no gradient the margin's is followed. The papers fit one patch to
    many images, under transforms of the camera (`eot`); here each image gets its own, the worst case for
    that window.
    Source: Brown, Mane, Roy, Abadi, Gilmer 2017, 1712.09665, eq. 1; the mask as in Eykholt et al. 2018,
    1707.08945, eq. 3.
    """

    paper = "Brown, Mane, Roy, Abadi, Gilmer 2017, 1712.09665"
    norms = ("linf", "l2", "patch")
    cost = Cost.MEDIUM

    area: float = 0.1
    places: int = 5
    steps: int = 40
    relative_step: float = 0.1
    loss: str = "ce"

    def __post_init__(self) -> None:
        _check(self.name, self.steps, self.loss)
        if not 0 < self.area <= 1 or self.places < 1:
            raise UserError("patch needs an area in (0, 1] and places >= 1")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        best, rows = batch.x.clone(), torch.arange(len(batch), device=batch.x.device)
        image = as_images(batch.x)
        size = square_size(image, self.area)
        if isinstance(threat, FreePixels):
            size = threat.window(image.shape[2], image.shape[3])
            threat = ThreatModel("linf", threat.box.width, threat.box)
        if not size[0]:
            return best
        _, _, gradient = uphill(model, batch.x, rows, batch.y, self.loss)
        top, left = most_promising(batch.x, gradient, threat, size)
        for place in range(self.places):
            if place:
                draws = randomness.child("place", place).uniform(batch.index[rows], (2,))
                top = (draws[:, 0] * (image.shape[2] - size[0] + 1)).long()
                left = (draws[:, 1] * (image.shape[3] - size[1] + 1)).long()
            x = batch.x[rows]
            mask = window_mask(x, top, left, size)
            point, broken = climb_within(
                model,
                batch,
                rows,
                mask,
                x,
                threat,
                loss=self.loss,
                steps=self.steps,
                step_size=self.relative_step * threat.radius,
            )
            replace = broken if place else torch.ones_like(broken)
            best[rows] = torch.where(per_sample(replace, x), point, best[rows])
            rows = rows[~broken]
            if not len(rows):
                break
        return best


@dataclass(frozen=True, kw_only=True)
class Masked(Attack):
    """Changes the entries where `mask` is True, the same for every image, and not a bit elsewhere.

    mask is (h, w) or the shape of one input; projected steepest ascent as in `patch`. Not registered, since
    a mask belongs to its images: build it and call `run`. Raises UserError for a mask of another shape.
    Source: Eykholt et al. 2018, 1707.08945, eq. 3, without the printability term.
    """

    name: ClassVar[str] = "masked"
    paper = "Eykholt et al. 2018, 1707.08945"
    norms = ("linf", "l2")

    mask: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    steps: int = 40
    relative_step: float = 0.1
    loss: str = "ce"

    def __post_init__(self) -> None:
        _check(self.name, self.steps, self.loss)

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        shape = batch.x.shape[1:]
        if self.mask.shape not in (shape, shape[-2:]):
            raise UserError(
                f"the mask has shape {tuple(self.mask.shape)} but an input has {tuple(shape)}: "
                "give it that shape, or its height and width"
            )
        mask = self.mask.to(batch.x.device).bool().expand(batch.x.shape)
        rows = torch.arange(len(batch), device=batch.x.device)
        point, _ = climb_within(
            model,
            batch,
            rows,
            mask,
            batch.x,
            threat,
            loss=self.loss,
            steps=self.steps,
            step_size=self.relative_step * threat.radius,
        )
        return point
