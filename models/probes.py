"""Signs, read off a model before any attack, that a robustness number measured on it would mislead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.base import Batch, Classifier, frozen, margin
from models.input_scale import scale_signs
from models.memory import MEMORY, by_order
from models.randomness import Randomness
from models.threat import ThreatModel

SAMPLES = 50
# A share of samples from which on a sign is no longer an accident.
MANY = 0.1
# Random steps that a gradient must foretell, their size as a share of the radius, and in such steps how near
# the point lies from which they are taken.
DIRECTIONS, STEP, NEARBY = 8, 0.002, 50.0
# How much of the change it may miss: a gradient of half of the inputs misses 0.7 of it.
PART = 0.4
# How often the same images are asked for again, and one of them alone.
REPEATS, TOSSES = 2, 10
# Attacks ask about so many images at once, or about so many entries: as many must be answered as a few are.
CROWD, CROWD_ENTRIES = 1000, 2**20
MODES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Sign:
    """A short word for tables, and a sentence with the numbers behind it."""

    word: str
    detail: str


class _Onlooker(TorchFunctionMode):
    """Sees every call of torch and changes nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def signs(model: Classifier, batch: Batch, threat: ThreatModel) -> list[Sign]:
    """What is suspicious about `model` on up to 100 of the samples x (n, ...); nothing for an honest one.

    Random or batch-dependent outputs, other ones after other questions or where gradients are asked for,
    layers in train mode, probabilities or labels for logits, saturation, jumps next to the samples, inputs
    on another scale and labels in another order than the network was trained on, and gradients that are
    absent, zero, NaN, shattered (loss along the gradient is not what the gradient promises) or partial (loss
    beside it is not).
    Source: Athalye, Carlini, Wagner 2018, 1802.00420, section 3.1; Carlini et al. 2019, 1902.06705.
    """
    whole, batch = batch[: 2 * SAMPLES], batch[:SAMPLES]
    stuck = [module for module in model.modules() if module.training and isinstance(module, MODES)]
    found = []
    if stuck:
        found.append(
            Sign("train mode", f"{type(stuck[0]).__name__} was left in train mode: judged in eval mode")
        )
    with frozen(model):
        with torch.no_grad():
            logits = model.logits(batch.x)
            found += _repeated(model, batch, logits)
            found += _shape_of(logits)
            if not any(sign.word in ("random", "batch-dependent") for sign in found):
                found += _jumps(model, batch, logits, threat)
            if not any(sign.word == "random" for sign in found):
                found += _remembered(model, batch, threat)
                found += [Sign("scaling", said) for said in scale_signs(model, whole)]
                found += _order(model, whole)
            if not any(sign.word in ("random", "batch-dependent") for sign in found):
                found += _told(model, batch, logits)
        found += _gradients(model, batch, threat)
    return found


def _repeated(model: Classifier, batch: Batch, logits: Tensor) -> Iterator[Sign]:
    unit = max(1.0, float(logits.abs().max()))
    # A model that tosses a coin a batch may well give the same answer twice.
    again = [model.logits(batch.x) - logits for _ in range(REPEATS)]
    first, *others = (model.logits(batch.x[:1]) for _ in range(TOSSES))
    change = max(float(difference.abs().max()) for difference in (*again, *(one - first for one in others)))
    if change > 1e-5 * unit:
        yield Sign("random", f"logits change by {change:.2g} when the same images are asked for again")
        return
    alone = torch.cat([model.logits(batch.x[i : i + 1]) for i in range(min(len(batch), 5))])
    times = max(2, min(CROWD, CROWD_ENTRIES // batch.x[0].numel()) // len(batch) + 1)
    crowded = model.logits(batch.x.repeat(times, *[1] * (batch.x.dim() - 1)))[: len(batch)]
    found = (float((part - logits[: len(part)]).abs().max()) for part in (alone, crowded))
    change = max(found)
    if change > 1e-3 * unit:
        yield Sign("batch-dependent", f"logits of an image change by {change:.2g} with the batch it is in")


def _remembered(model: Classifier, batch: Batch, threat: ThreatModel) -> Iterator[Sign]:
    change = 0.0 if model.stochastic else by_order(model, batch, threat)
    if change:
        said = f"logits change by {change:.2g} with what was asked before"
        yield Sign(MEMORY, f"{said}: reset the model before each image")


def _shape_of(logits: Tensor) -> Iterator[Sign]:
    one_hot = (logits == logits.amin(1, keepdim=True)).sum(1) == logits.shape[1] - 1
    if logits.shape[1] > 2 and bool(one_hot.all()):
        yield Sign("labels", "all logits but one are equal: labels are handed out in place of scores")
        return
    if bool((logits >= 0).all()) and bool(((logits.double().sum(1) - 1).abs() < 1e-4).all()):
        yield Sign("probabilities", "the outputs of every image are probabilities: remove the softmax")
    elif bool(((logits >= 0) & (logits <= 1)).all()):
        yield Sign("probabilities", "all outputs lie in [0, 1]: return what is before the sigmoid")
    others = logits.float().softmax(1).scatter(1, logits.argmax(1, keepdim=True), 0.0).amax(1)
    share = float((others == 0).double().mean())
    if share >= 0.5:
        said = "gives every other class a probability of exactly zero in single precision"
        yield Sign("saturated", f"on {100 * share:.0f} % of the images it {said}: scale the logits down")
    spread = float((logits.amax(1) - logits.amin(1)).median())
    unit = float(logits.abs().amax(1).median()) * torch.finfo(logits.dtype).eps
    if spread < 1e4 * unit:
        yield Sign("coarse logits", f"logits of an image differ by {spread:.2g}, rounded to {unit:.2g}")
    if spread < 1e-2:
        yield Sign("flat logits", f"logits of an image differ by {spread:.2g}: losses drown in rounding")


def _jumps(model: Classifier, batch: Batch, logits: Tensor, threat: ThreatModel) -> Iterator[Sign]:
    """Noise of a ten-thousandth of the box must not move the logits as other images do."""
    if not bool((batch.x != batch.x[:1]).any()):
        return  # one image, however often: no other to compare with
    noise = Randomness(0).sign(batch.index, batch.x.shape[1:]).to(batch.x)
    moved = model.logits(threat.box.clamp(batch.x + 1e-4 * threat.box.width * noise))
    usual = float(logits.std(0).mean())
    share = float(((moved - logits).abs().amax(1) > 0.5 * usual).double().mean())
    if share >= MANY:
        yield Sign("jumps", f"imperceptible noise changes the logits of {100 * share:.0f} % of the images")


def _order(model: Classifier, batch: Batch) -> Iterator[Sign]:
    """Labels in another order than the logits: few images are right, but each label has its own class."""
    classes = model.num_classes
    predicted = model.logits(batch.x).argmax(1)
    pairs = torch.bincount(batch.y * classes + predicted, minlength=classes**2).reshape(classes, classes)
    labels = pairs.sum(1) > 0
    named = pairs[labels].argmax(1)
    kept = float(pairs[labels].amax(1).sum()) / len(batch)
    right = float((predicted == batch.y).double().mean())
    if len(batch) < 3 * len(named) or named.unique().numel() < len(named) or kept < right + 0.4:
        return
    said = f"{100 * right:.0f} % of {len(batch)} images are right, but {100 * kept:.0f} % with labels renamed"
    yield Sign("class order", f"{said}: bring them into the order of the logits")


def _told(model: Classifier, batch: Batch, logits: Tensor) -> Iterator[Sign]:
    """Whoever asks for gradients, or looks on, must get the same answers as everyone else."""
    with torch.enable_grad():
        asked = model.logits(batch.x.detach().requires_grad_(True)).detach()
    with _Onlooker():
        watched = model.logits(batch.x)
    for found, where in ((asked, "gradients are asked for"), (watched, "somebody looks on")):
        change = float((found - logits).abs().max())
        if change > 1e-3 * max(1.0, float(logits.abs().max())):
            yield Sign("two faces", f"logits change by {change:.2g} where {where}")
            return


def _gradients(model: Classifier, batch: Batch, threat: ThreatModel) -> Iterator[Sign]:
    x = batch.x.detach().requires_grad_(True)
    with torch.enable_grad():
        values = margin(model.differentiable_logits(x), batch.y)
        if not values.requires_grad:
            yield Sign("no gradient", "outputs do not depend on the inputs for autograd: declare a surrogate")
            return
        try:
            (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
        except RuntimeError as reason:
            yield Sign("no gradient", f"autograd gives none: {str(reason).splitlines()[0]}")
            return
    if gradient is None:
        yield Sign("no gradient", "outputs do not depend on the inputs for autograd: declare a surrogate")
        return
    flat = gradient.flatten(1)
    broken = float((~torch.isfinite(flat)).any(1).double().mean())
    if broken:
        yield Sign("NaN gradient", f"gradients of {100 * broken:.0f} % of the images are not finite")
    zero = float((flat == 0).all(1).double().mean())
    if zero >= MANY:
        yield Sign("zero gradient", f"gradients of {100 * zero:.0f} % of the images are zero throughout")
    elif not broken and threat.norm in ("linf", "l2"):
        # A small l1 or l0 step is a large one of few pixels, along which no gradient need hold.
        yield from _along(model, batch, values.detach(), gradient, threat)


def _along(
    model: Classifier, batch: Batch, values: Tensor, gradient: Tensor, threat: ThreatModel
) -> Iterator[Sign]:
    """A small steepest step must lower the margin about as much as the gradient says."""
    moved = threat.project(batch.x, batch.x + 0.05 * threat.radius * threat.steepest(-gradient))
    with torch.no_grad():
        fall = values - margin(model.logits(moved), batch.y)
    promised = -((moved - batch.x) * gradient).flatten(1).sum(1)
    kept = fall[promised > 0] / promised[promised > 0]
    if len(kept) and not 0.4 < float(kept.median()) < 2.5:
        said = f"a small step keeps {100 * float(kept.median()):.0f} % of what its gradient promises"
        yield Sign("shattered", said)
        return
    if model.surrogate is None:
        yield from _beside(model, batch, threat)


def _beside(model: Classifier, batch: Batch, threat: ThreatModel) -> Iterator[Sign]:
    """Small random steps must change the margin about as the gradient says: it may be that of a part alone.

    From a random point nearby, inside the box: at its ends and on plain surfaces networks have their kinks,
    as where max pooling finds all entries equal. Samples whose changes are rounding do not count.
    """
    step = STEP * threat.radius * (1.0 if threat.norm == "linf" else batch.x[0].numel() ** -0.5)
    away = Randomness(0).child("nearby").uniform(batch.index, batch.x.shape[1:]).to(batch.x) - 0.5
    inner = batch.x.clamp(threat.box.lower + NEARBY * step, threat.box.upper - NEARBY * step)
    inner = (inner + NEARBY * step * away).detach()
    x = inner.clone().requires_grad_(True)
    with torch.enable_grad():
        values = margin(model.differentiable_logits(x), batch.y)
        (gradient,) = torch.autograd.grad(values.sum(), x)
    off, made = torch.zeros_like(values), torch.zeros_like(values)
    for draw in range(DIRECTIONS):
        move = step * Randomness(0).child("beside", draw).sign(batch.index, batch.x.shape[1:]).to(batch.x)
        with torch.no_grad():
            ahead, behind = (margin(model.logits(inner + way), batch.y) for way in (move, -move))
        change, promised = ahead - behind, 2 * (move * gradient).flatten(1).sum(1)
        off, made = off + (change - promised).square(), made + change.square()
    seen = made.sqrt() > 1e3 * torch.finfo(values.dtype).eps * values.detach().abs().max()
    share = (off[seen] / made[seen]).sqrt()
    if len(share) and float(share.median()) > PART:
        said = f"small random steps change margins by {100 * float(share.median()):.0f} % otherwise than"
        yield Sign("partial gradient", f"{said} gradients promise")
