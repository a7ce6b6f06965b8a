"""The worst rotation and translation of each image: a grid, a few random ones, or first-order steps.

No norm measures these moves, and a point does not tell its pose: the search returns poses, and whoever
judges carries each one out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack, verdict
from attacks.losses import against, margin_loss
from attacks.worst import Worst
from models.base import Batch, Classifier, check_inputs, check_logits, frozen, margin
from models.cost import Cost
from models.errors import UserError
from models.norms import POSES
from models.poses import Poses, Spatial
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from models.transformation import need_images

SEARCHES = ("grid", "random", "first-order")
GROUP, ROWS = 10, 256
"""So many poses of a sample are tried together, and so many images asked about at once."""


@dataclass(frozen=True)
class SpatialBatch:
    """The worst pose found for each of n samples, carried out again and judged.

    pose (n, 3): angle in parts of the limits (see Poses); x_adv (n, c, h, w) as the network saw it;
    success (n,): the model errs there; clean (n,): it is right at the identity, which counts as tried;
    margin (n,) float64 at x_adv; forward and backward (n,): passes of the search.
    """

    pose: Tensor
    x_adv: Tensor
    success: Tensor
    clean: Tensor
    margin: Tensor
    forward: Tensor
    backward: Tensor


@register_attack("rotation-translation")
@dataclass(frozen=True, kw_only=True)
class RotationTranslation(Attack):
    """Searches the rotations and translations of each image for one that is misclassified.

    "grid" tries angles x shifts x shifts of them (775), the largest moves first; "random" tries `draws`
    uniform ones, each sample its own; "first-order" takes `steps` sign steps on the pose, decaying from
    `step_size`, along the loss's gradient through the bilinear warp, from `restarts` random poses. A sample
    leaves once it is misclassified.
    Source: Engstrom, Tran, Tsipras, Schmidt, Madry 2019, 1712.02779, section 3.
    """

    paper = "Engstrom, Tran, Tsipras, Schmidt, Madry 2019, 1712.02779"
    norms: ClassVar[tuple[str, ...]] = tuple(POSES)
    cost = Cost.MEDIUM

    search: str = "grid"
    angles: int = 31
    shifts: int = 5
    draws: int = 10
    steps: int = 20
    restarts: int = 1
    step_size: float = 0.25

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise UserError(f"no spatial search '{self.search}': choose {', '.join(SEARCHES)}")
        if min(self.angles, self.shifts, self.draws, self.steps, self.restarts) < 1:
            raise UserError("angles, shifts, draws, steps and restarts must be at least 1")

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        assert isinstance(threat, Spatial)
        need_images(batch.x, "rotations and translations")
        return threat.radius * self.find(model, batch, threat.poses, randomness).clamp(-1, 1)

    def find(self, model: GradientAccess, batch: Batch, allowed: Poses, randomness: Randomness) -> Tensor:
        """A pose (n, 3) float64 for each of n samples: misclassified, or that of the greatest loss seen."""
        worst = Worst(batch, 3)
        if self.search == "first-order":
            for restart in range(self.restarts):
                self._climb(model, batch, allowed, worst, randomness.child("restart", restart))
            return worst.move
        n, shared = len(batch), self.search == "grid"
        if shared:
            poses = allowed.grid(self.angles, self.shifts).to(batch.x.device).expand(n, -1, 3)
        else:
            poses = 2 * randomness.uniform(batch.index, (self.draws, 3)).double() - 1
        for first in range(0, poses.shape[1], GROUP):
            live = worst.live()
            if not len(live):
                break
            for rows in live.split(ROWS // GROUP):
                pose = poses[rows, first : first + GROUP]
                row = rows.repeat_interleave(pose.shape[1])
                if shared:
                    image = _alike(batch.x[rows], pose[0], allowed, model.box)
                else:
                    image = allowed.apply(batch.x[row], pose.flatten(0, 1), model.box)
                worst.note(rows, pose, model.logits(image, row))
        return worst.move

    def _climb(
        self, model: GradientAccess, batch: Batch, allowed: Poses, worst: Worst, randomness: Randomness
    ) -> None:
        rows = worst.live()
        pose = 2 * randomness.uniform(batch.index[rows], (3,)).double() - 1
        for step in range(self.steps + 1):
            if not len(rows):
                return
            x, y = batch.x[rows], batch.y[rows]
            with torch.enable_grad():
                leaf = pose.clone().requires_grad_(True)
                image = allowed.apply(x, leaf, model.box)
            if step == self.steps:
                worst.note(rows, pose[:, None], model.logits(image.detach(), rows))
                return
            logits, _, gradient = model.gradient(image.detach(), rows, against(margin_loss, y))
            (slope,) = torch.autograd.grad(image, leaf, gradient)
            worst.note(rows, pose[:, None], logits)
            staying = ~worst.broken[rows]
            length = self.step_size * (1 - step / self.steps)
            pose = (pose + length * slope.sign()).clamp(-1, 1)[staying]
            rows = rows[staying]


def _alike(x: Tensor, pose: Tensor, allowed: Poses, box: Box) -> Tensor:
    """Each of the images x (k, c, h, w) in all poses (g, 3), one image after the other: (k * g, c, h', w').

    Where a pose's pixels come from is computed once for all images, as if these were the channels of one.
    """
    k, c = x.shape[:2]
    moved = allowed.apply(x.reshape(1, k * c, *x.shape[2:]).expand(len(pose), -1, -1, -1), pose, box)
    return moved.reshape(len(pose), k, c, *moved.shape[2:]).transpose(0, 1).flatten(0, 1)


def spatial_worst_case(
    model: Classifier,
    batch: Batch,
    search: RotationTranslation | None = None,
    randomness: Randomness | None = None,
    *,
    poses: Poses | None = None,
    batch_size: int = 256,
) -> SpatialBatch:
    """The worst rotation and translation of each image x (n, c, h, w), judged on the pose carried out again.

    For what the registered attack cannot say: limits of their own for either move, or a view of the centre.
    Raises UserError for inputs that are no images, a view larger than they are, and what Attack.run refuses.
    """
    search, randomness, poses = search or RotationTranslation(), randomness or Randomness(0), poses or Poses()
    need_images(batch.x, "rotations and translations")
    view = poses.view
    if view and (view[0] > batch.x.shape[2] or view[1] > batch.x.shape[3]):
        raise UserError(f"the view {view} is larger than the images {tuple(batch.x.shape[2:])}")
    check_inputs(batch, model)
    with frozen(model):
        pieces = [_judged(model, piece, search, poses, randomness) for piece in batch.split(batch_size)]
    return SpatialBatch(*(torch.cat(columns) for columns in zip(*pieces, strict=True)))


def _judged(
    model: Classifier, batch: Batch, search: RotationTranslation, poses: Poses, randomness: Randomness
) -> tuple[Tensor, ...]:
    still = torch.zeros(len(batch), 3, dtype=torch.float64, device=batch.x.device)
    logits, wrong = verdict(model, poses.apply(batch.x, still, model.box), batch.y)
    check_logits(logits, model.name)
    clean, pose = ~wrong, still.clone()
    view = GradientAccess(model, int(clean.sum()))
    pose[clean] = search.find(view, batch[clean], poses, randomness).clamp(-1, 1)
    x_adv = poses.apply(batch.x, pose, model.box)
    logits, wrong = verdict(model, x_adv, batch.y)
    passes = torch.zeros(2, len(batch), dtype=torch.int64)
    passes[:, clean.cpu()] = torch.stack([view.forward, view.backward])
    return pose, x_adv, wrong | ~clean, clean, margin(logits.double(), batch.y), passes[0], passes[1]


def landscape(
    model: Classifier, batch: Batch, poses: Poses, angles: int, shifts: int
) -> tuple[Tensor, Tensor]:
    """The grid's poses (g, 3) and the loss max_{j != y} z_j - z_y of every sample at each of them (n, g)."""
    grid = poses.grid(angles, shifts).to(batch.x.device)
    with frozen(model), torch.no_grad():
        columns = [
            margin_loss(model.logits(poses.apply(batch.x, pose.expand(len(batch), 3), model.box)), batch.y)
            for pose in grid
        ]
    return grid, torch.stack(columns, 1)
