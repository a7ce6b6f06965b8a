"""Signs that a network is handed its images on another scale than it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.base import Batch, Classifier
from models.sources.base import Prepared

# Inputs that are normalised once have a standard deviation near 1, normalised twice one of 3 to 5.
DECLARED, TWICE, BYTES = 1.7, 2.4, 20.0
# Images in [0, 1] behind a division by 255 span less than 0.004.
TINY = 0.01
# Batch statistics of the data that a network was trained on are within a few tenths of its own.
FAR = 3.0
# So many more images right, and so many for each that is lost, are no accident: p = 1/256.
CLEARLY = 8
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass
class _Seen:
    """What the first layer with weights and the first batch normalisation were handed."""

    first: Tensor | None = None
    normalisation: tuple[nn.modules.batchnorm._BatchNorm, Tensor] | None = None


def scale_signs(model: Classifier, batch: Batch) -> Iterator[str]:
    """Why the scale of the inputs x (n, ...) looks wrong, with the remedy; nothing where it looks right.

    Read off what the first layer sees, off the statistics that batch normalisation keeps of its training,
    and off scalings on which the network is right clearly more often.
    """
    seen, values = _watched(model.network, batch.x), batch.x
    said = list(_of_first(model.network, values, seen.first)) + list(_of_statistics(seen))
    yield from said or _of_accuracy(model, batch)


def _watched(network: nn.Module, x: Tensor) -> _Seen:
    seen, handles = _Seen(), []

    def first(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.first = inputs[0].detach() if seen.first is None else seen.first

    def normalisation(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if seen.normalisation is None:
            assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
            seen.normalisation = (layer, inputs[0].detach())

    for layer in network.modules():
        if isinstance(layer, LAYERS):
            handles.append(layer.register_forward_pre_hook(first))
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            handles.append(layer.register_forward_pre_hook(normalisation))
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _affine(x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """scale and shift (channels,) with seen = scale x + shift, where the two are related so."""
    if seen is None or seen.numel() != x.numel() or len(seen) != len(x):
        return None
    axes = (1, 0, 2) if x.dim() > 2 else (0, 1)
    parts = [
        (one.reshape(x.shape).flatten(2).permute(axes) if x.dim() > 2 else one.reshape(x.shape)[None])
        .flatten(1)
        .double()
        for one in (x, seen)
    ]
    means = [part.mean(1, keepdim=True) for part in parts]
    spread = (parts[0] - means[0]).square().mean(1)
    if not bool((spread > 1e-8).all()):
        return None
    scale = ((parts[0] - means[0]) * (parts[1] - means[1])).mean(1) / spread
    shift = means[1][:, 0] - scale * means[0][:, 0]
    rest = parts[1] - scale[:, None] * parts[0] - shift[:, None]
    unit = (scale.abs() * spread.sqrt())[:, None].clamp(min=1e-12)
    return (scale, shift) if float((rest.abs() / unit).max()) < 1e-2 else None


def _of_first(network: nn.Module, x: Tensor, seen: Tensor | None) -> Iterator[str]:
    found = _affine(x, seen)
    if found is None or seen is None:
        return
    scale, shift = found
    low, high, deviation = float(seen.min()), float(seen.max()), float(seen.double().std())
    if high - low < TINY:
        said = "the network seems to want [0, 255], add @box=0,255"
        yield f"the first layer sees values from {low:.2g} to {high:.2g}: {said}"
        return
    shifted = bool((shift.abs() > 1e-3 * scale.abs()).any())
    once = DECLARED if _declared(network, x, seen) else TWICE
    if shifted and once < deviation < BYTES:
        spread = f"from {low:.2g} to {high:.2g}, of standard deviation {deviation:.2g}"
        said = "the inputs seem to be normalised twice, or by a wrong std"
        yield f"the first layer sees values {spread}: {said}"


def _declared(network: nn.Module, x: Tensor, seen: Tensor) -> bool:
    """Whether the inputs are shifted as declared and again inside the network."""
    if not isinstance(network, Prepared) or not bool((network.shift != 0).any()):
        return False
    inner = _affine(x * network.scale + network.shift, seen)
    return inner is not None and bool((inner[1].abs() > 1e-3 * inner[0].abs()).any())


def _of_statistics(seen: _Seen) -> Iterator[str]:
    if seen.normalisation is None:
        return
    layer, values = seen.normalisation
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None or not bool((mean != 0).any()):
        return
    axes = [0, *range(2, values.dim())]
    here = values.double().var(axes).clamp(min=1e-12)
    ratio = float((here / variance.double().clamp(min=1e-12)).log().median().exp())
    away = (values.double().mean(axes) - mean.double()).abs() / variance.double().clamp(min=1e-12).sqrt()
    if not 1 / FAR < ratio < FAR or float(away.median()) > FAR:
        yield (
            f"the first batch normalisation sees {ratio:.2g} times the variance that it was trained on, and "
            f"means {float(away.median()):.2g} deviations away: check mean, std and box of the inputs"
        )


def _of_accuracy(model: Classifier, batch: Batch) -> Iterator[str]:
    """The scaling on which clearly more images are right, of those that people forget or apply twice."""
    network = model.network.network if isinstance(model.network, Prepared) else model.network
    right = _right(model.network, batch)
    best, gained = "", 0
    unit = (batch.x - model.box.lower) / model.box.width
    for what, x in _scalings(unit, isinstance(model.network, Prepared)):
        try:
            other = _right(network, Batch(x, batch.y, batch.index))
        except Exception:  # The user's own forward may fail in any way on values it does not expect.
            continue
        more, fewer = int((other & ~right).sum()), int((right & ~other).sum())
        if more - fewer > max(gained, CLEARLY - 1) and more >= CLEARLY * fewer:
            shares = [f"{100 * float(part.double().mean()):.0f} %" for part in (right, other)]
            best = f"{shares[0]} of {len(batch)} images are right as they come, {shares[1]} {what}"
            gained = more - fewer
    if best:
        yield best


def _right(network: nn.Module, batch: Batch) -> Tensor:
    wanted: Tensor = network(batch.x).argmax(1) == batch.y
    return wanted


def _scalings(x: Tensor, prepared: bool) -> Iterator[tuple[str, Tensor]]:
    """What to do, and the images on which it is done; x (n, ...) in [0, 1]."""
    if prepared:
        yield "not normalised: leave out mean, std and box", x
        return
    axes = [0, *range(2, x.dim())] if x.dim() == 4 else list(range(x.dim()))
    mean, std = x.mean(axes, keepdim=True), x.std(axes, keepdim=True).clamp(min=1e-6)
    numbers = [",".join(f"{value:.3f}" for value in part.flatten().tolist()) for part in (mean, std)]
    yield f"normalised: add @mean={numbers[0]}@std={numbers[1]}", (x - mean) / std
    yield "in [-1, 1]: add @box=-1,1", 2 * x - 1
    yield "in [0, 255]: add @box=0,255", 255 * x
    for shift, width in ((mean, std), (0.5, 0.5), (0.5, 0.25)):
        undone = f"{float(torch.as_tensor(shift).mean()):.2g} and {float(torch.as_tensor(width).mean()):.2g}"
        yield f"with a normalisation by {undone} undone: it is applied twice", x * width + shift
