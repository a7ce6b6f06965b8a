"""EOT: one perturbation that fools the network under most transforms of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.images import need_pictures
from attacks.losses import LOSSES, against, check_loss
from attacks.transforms import Blur, Brightness, Compose, Noise, Pose, Transform
from models.base import Batch, Classifier, frozen
from models.cost import Cost
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


def keys_of(index: Tensor, draws: int) -> Tensor:
    """One key (n, draws) for each draw of each sample."""
    return index[:, None] * draws + torch.arange(draws, device=index.device)


def mean_gradient(
    model: GradientAccess,
    z: Tensor,
    y: Tensor,
    rows: Tensor,
    transform: Transform,
    keys: Tensor,
    randomness: Randomness,
    loss: str,
) -> tuple[Tensor, Tensor]:
    """Where the model errs, on z itself and on its draws (k, 1 + draws), and the gradient of the mean loss.

    keys (k, draws) name the draws; the gradient goes through the transforms of z (k, ...).
    """
    draws, count = keys.shape[1], keys.shape[1] + 1
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        turned = transform(leaf.repeat_interleave(draws, 0), keys.flatten(), randomness, model.box)
        both = torch.cat([leaf[:, None], turned.reshape(len(z), draws, *z.shape[1:])], 1)
        seen = both.flatten(0, 1)
    labels = y.repeat_interleave(count)
    logits, _, slope = model.gradient(
        seen.detach(), rows.repeat_interleave(count), against(LOSSES[loss], labels)
    )
    (gradient,) = torch.autograd.grad(seen, leaf, slope / count)
    return (logits.argmax(1) != labels).reshape(-1, count), gradient


def survival(
    model: Classifier, batch: Batch, x_adv: Tensor, transform: Transform, randomness: Randomness, draws: int
) -> Tensor:
    """The share of `draws` fresh transforms of x_adv (n, ...) under which the model errs: (n,) float64.

    Give a `randomness` that the attack has not seen.
    """
    keys, shares = keys_of(batch.index, draws), []
    with frozen(model), torch.no_grad():
        for draw in range(draws):
            seen = transform(x_adv, keys[:, draw], randomness, model.box)
            shares.append(model.logits(seen).argmax(1) != batch.y)
    return torch.stack(shares).double().mean(0)


@register_attack("eot")
@dataclass(frozen=True, kw_only=True)
class EOT(Attack):
    """Ascends the mean loss over random transforms, for a perturbation that survives all of them.

    max E_{t ~ T} J(f(t(x')), y) within the ball, by steps along the steepest direction of the mean gradient
    over the image itself and `draws` fresh transforms: a turn of up to `rotate` degrees, a scale in
    1 +- `scale`, a shift of up to `shift` of a side, a Gaussian blur of up to `blur` pixels, contrast and
    brightness of +- `brightness`, noise of up to `noise` box widths. A sample leaves once all 1 + `draws`
    are misclassified in `patience` steps in a row. The verdict is on the image as it stands, so that among
    the points seen those that the model errs on without a transform come first, then those of the
    greatest share of draws; `survival` measures that share on fresh draws.
    Source: Athalye, Engstrom, Ilyas, Kwok 2018, 1707.07397, section 2, with a ball in place of the penalty
    on the distance; 3D printing is left out.
    """

    paper = "Athalye, Engstrom, Ilyas, Kwok 2018, 1707.07397"
    norms = ("linf", "l2")
    cost = Cost.EXPENSIVE

    steps: int = 40
    draws: int = 16
    relative_step: float = 0.1
    patience: int = 5
    rotate: float = 30.0
    scale: float = 0.1
    shift: float = 0.1
    blur: float = 0.5
    brightness: float = 0.1
    noise: float = 0.1
    loss: str = "ce"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.draws < 1 or self.patience < 1:
            raise UserError("eot needs steps, draws and patience >= 1")
        ranges = (self.rotate, self.scale, self.shift, self.blur, self.brightness, self.noise)
        if min(ranges) < 0 or self.scale >= 1:
            raise UserError("eot needs ranges >= 0 and a scale < 1")
        check_loss(self.loss, "eot")

    @property
    def transform(self) -> Compose:
        """The transforms that the expectation is over."""
        parts: list[Transform] = [Pose(self.rotate, self.scale, self.shift)]
        parts += [Blur(self.blur)] * (self.blur > 0) + [Brightness(self.brightness)] * (self.brightness > 0)
        return Compose((*parts, *[Noise(self.noise)] * (self.noise > 0)))

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        need_pictures(batch.x, self.name)
        return self.ascend(model, batch, threat, randomness, self.transform)

    def ascend(
        self,
        model: GradientAccess,
        batch: Batch,
        threat: ThreatModel,
        randomness: Randomness,
        transform: Transform,
    ) -> Tensor:
        """The search under any transform: points (n, ...)."""
        point = batch.x.clone()
        best, highest = batch.x.clone(), torch.full(batch.y.shape, -torch.inf).to(batch.x)
        streak, rows = torch.zeros_like(batch.y), torch.arange(len(batch), device=batch.x.device)
        for step in range(self.steps + 1):
            z, y, project = point[rows], batch.y[rows], threat.projection(batch.x[rows])
            keys, stream = keys_of(batch.index[rows], self.draws), randomness.child("step", step)
            wrong, gradient = mean_gradient(model, z, y, rows, transform, keys, stream, self.loss)
            value = wrong[:, 0].to(z) + wrong[:, 1:].to(z).mean(1)
            # Later points win ties: more steps have gone into them.
            better = value >= highest[rows]
            best[rows[better]], highest[rows[better]] = z[better], value[better]
            streak[rows] = torch.where(wrong.all(1), streak[rows] + 1, 0)
            point[rows] = project(z + self.relative_step * threat.radius * threat.steepest(gradient))
            rows = rows[streak[rows] < self.patience]
            if not len(rows):
                break
        return best
