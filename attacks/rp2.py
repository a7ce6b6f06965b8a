"""RP2: stickers that fool the network from many views, in colours that can be printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attacks.access import GradientAccess
from attacks.base import Attack, register_attack
from attacks.eot import keys_of, mean_gradient
from attacks.losses import LOSSES, against, check_loss
from attacks.patch import most_promising, window_mask
from attacks.transforms import Blur, Brightness, Compose, Noise, Pose, Transform
from attacks.unbounded import Adam
from models.base import Batch
from models.cost import Cost
from models.errors import UserError
from models.pixels import FreePixels
from models.randomness import Randomness
from models.threat import Box, ThreatModel


def printable(channels: int, box: Box, levels: int) -> Tensor:
    """The colours (m, channels) that a printer has: all with `levels` equal steps a channel, box values."""
    steps = torch.linspace(box.lower, box.upper, levels)
    return torch.cartesian_prod(*[steps] * channels).reshape(-1, channels)


def non_printability(x: Tensor, mask: Tensor, colours: Tensor, box: Box) -> Tensor:
    """The mean over the masked pixels of prod_c |p - c|, distances of colours in box widths: (n,).

    x (n, c, h, w), mask (n, h, w), colours (m, c); 0 exactly where every masked pixel has one of the colours.
    Sharif et al. 2016's score, as in Eykholt et al. 2018, 1707.08945, eq. 2, there a sum.
    """
    away = (x[:, None] - colours.to(x)[None, :, :, None, None]) / box.width
    # The gradient of a length is not defined at 0: there the score has its minimum.
    length = away.square().sum(2).clamp(min=1e-20).sqrt() * (away != 0).any(2)
    score = length.prod(1) * mask
    return score.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


def stickers(threat: FreePixels, height: int, width: int) -> Tensor:
    """Two horizontal bars, a quarter from the top and from the bottom, of at most eps of the picture: (h, w).

    Each spans the middle three quarters; below one row's pixels they are shorter.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    budget = int(threat.radius * height * width)
    long = min(max(3 * width // 4, 1), max(budget // 2, 1))
    left, bars = (width - long) // 2, max(budget // (2 * long), 1)
    for middle in (height // 4, height - 1 - height // 4):
        top = min(max(middle - bars // 2, 0), height - min(bars, height))
        mask[top : top + bars, left : left + long] = True
    rows = mask.flatten().nonzero()[:, 0]
    mask.view(-1)[rows[budget:]] = False
    return mask


def read_mask(source: str | Tensor, x: Tensor) -> Tensor:
    """The mask (h, w) for images x (n, c, h, w): a tensor, or a picture file whose bright pixels are free."""
    mask = source if isinstance(source, Tensor) else _picture(source)
    if mask.shape != x.shape[-2:]:
        raise UserError(
            f"the mask has shape {tuple(mask.shape)} but the images have {tuple(x.shape[-2:])}: "
            "make it as high and as wide as they are"
        )
    return mask.bool()


def _picture(path: str) -> Tensor:
    if not Path(path).is_file():
        raise UserError(f"no mask file {path}")
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.asarray(picture.convert("L")) > 127)
    except OSError as error:
        raise UserError(f"mask file {path} is no picture: {error}") from None


@register_attack("rp2")
@dataclass(frozen=True, kw_only=True)
class RP2(Attack):
    """Paints stickers in printable colours that fool under random views, and not a bit outside them.

    max E_{t ~ T} J(f(t(x + M d)), y) - `printability` NPS(x + M d) - `sparsity` ||M d||_1 / entries(M) by
    Adam, `rate` box widths a step, clipped to the box; M d is zero outside the mask M to the bit. T is a
    turn of up to `rotate` degrees, a scale, a shift, blur, light and noise, as in `eot`. M is the picture
    file `mask` (bright pixels), a tensor (h, w), or, without either, two bars for the threat "mask", and
    for "patch" the window where the linearised loss rises most; its share of the picture is at most eps.
    Printable are all colours of `levels` steps a channel. A sample leaves after `patience` steps at which
    it and all its `draws` views are misclassified; among the points seen, the greatest share of fooled
    views wins. The verdict is on the image as it stands; `eot.survival` scores held-out views. Digital:
    nothing is printed.
    Source: Eykholt et al. 2018, 1707.08945, eq. 3, non-targeted.
    """

    paper = "Eykholt et al. 2018, 1707.08945"
    norms = ("mask", "patch")
    cost = Cost.EXPENSIVE

    mask: str | Tensor = ""
    steps: int = 60
    draws: int = 8
    rate: float = 0.1
    printability: float = 1.0
    sparsity: float = 0.0
    levels: int = 3
    patience: int = 5
    rotate: float = 15.0
    scale: float = 0.1
    shift: float = 0.05
    blur: float = 0.3
    brightness: float = 0.1
    noise: float = 0.05
    loss: str = "margin"

    def __post_init__(self) -> None:
        if min(self.steps, self.draws, self.patience) < 1 or self.levels < 2:
            raise UserError("rp2 needs steps, draws and patience >= 1, and levels >= 2")
        check_loss(self.loss, "rp2")

    @property
    def transform(self) -> Transform:
        """The views that the expectation is over."""
        light = Brightness(self.brightness)
        return Compose((Pose(self.rotate, self.scale, self.shift), Blur(self.blur), light, Noise(self.noise)))

    def propose(
        self, model: GradientAccess, batch: Batch, threat: ThreatModel, randomness: Randomness, fitted: None
    ) -> Tensor:
        assert isinstance(threat, FreePixels)
        free = self._free(model, batch, threat)
        colours = printable(batch.x.shape[1] if batch.x.dim() == 4 else 1, threat.box, self.levels)
        point, best = batch.x.clone(), batch.x.clone()
        highest, streak = torch.full(batch.y.shape, -torch.inf).to(batch.x), torch.zeros_like(batch.y)
        rows, adam = torch.arange(len(batch), device=batch.x.device), Adam.on(point, self.rate)
        for step in range(self.steps + 1):
            z, keys = point[rows], keys_of(batch.index[rows], self.draws)
            wrong, slope = mean_gradient(
                model,
                z,
                batch.y[rows],
                rows,
                self.transform,
                keys,
                randomness.child("step", step),
                self.loss,
            )
            share = wrong[:, 0].to(z) + wrong[:, 1:].to(z).mean(1)
            cost, fall = self._cost(z, batch.x[rows], free[rows], colours, threat.box)
            value = share - 0.01 * cost
            better = value >= highest[rows]
            best[rows[better]], highest[rows[better]] = z[better], value[better]
            streak[rows] = torch.where(wrong.all(1), streak[rows] + 1, 0)
            move = threat.box.width * adam.step(threat.box.width * (fall - slope))
            point[rows] = torch.where(free[rows], threat.box.clamp(z + move), batch.x[rows])
            staying = streak[rows] < self.patience
            rows = rows[staying]
            adam.keep(staying)
            if not len(rows):
                break
        return best

    def _cost(self, z: Tensor, x: Tensor, free: Tensor, colours: Tensor, box: Box) -> tuple[Tensor, Tensor]:
        """What colours and changes cost (k,), and the gradient (as z)."""
        image = z if z.dim() == 4 else z.flatten(1)[:, None, None]
        mask = free.reshape(image.shape)[:, 0]
        with torch.enable_grad():
            leaf = image.detach().requires_grad_(True)
            change = (leaf - x.reshape(image.shape)).abs().flatten(1).sum(1) / box.width
            cost = self.printability * non_printability(leaf, mask, colours, box)
            cost = cost + self.sparsity * change / free.flatten(1).sum(1).clamp(min=1)
            (fall,) = torch.autograd.grad(cost.sum(), leaf)
        return cost.detach(), fall.reshape(z.shape)

    def _free(self, model: GradientAccess, batch: Batch, threat: FreePixels) -> Tensor:
        """Which entries may change: bool, as x."""
        x = batch.x
        h, w = x.shape[2:] if x.dim() == 4 else (1, x[0].numel())
        if isinstance(self.mask, Tensor) or self.mask:
            free = read_mask(self.mask, x).to(x.device).expand(x.shape)
            x_free = torch.where(free, x + 1, x)
            if bool((threat.distance(x, x_free) > threat.radius).any()):
                share = float(threat.distance(x, x_free).max())
                raise UserError(
                    f"the mask needs eps >= {share:.4g} of '{threat.norm}', more than {threat.radius:g}"
                )
            return free
        if threat.norm == "mask":
            return stickers(threat, h, w).to(x.device).expand(x.shape)
        size = threat.window(h, w)
        if not size[0]:
            return torch.zeros_like(x, dtype=torch.bool)
        rows = torch.arange(len(x), device=x.device)
        _, _, slope = model.gradient(x, rows, against(LOSSES[self.loss], batch.y))
        anywhere = ThreatModel("linf", threat.box.width, threat.box)
        return window_mask(x, *most_promising(x, slope, anywhere, size), size)
