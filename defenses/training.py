"""The one training loop: seeded, resumable after each epoch, silent (it yields events)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from defenses.augmentation import augmented
from defenses.base import Defense
from defenses.training_data import check_asked, inside
from models.architecture import Architecture
from models.base import frozen
from models.data import Dataset
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe

# Images that are normalised together when batch normalisation's statistics are taken once more.
STATISTICS = 500


@dataclass(frozen=True)
class TrainingStep:
    """Progress of a run: `step` of `steps` in all, in `epoch` of `epochs`, with the last loss.

    `seconds` have been spent on training so far, those before an interruption included.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float = 0.0


def _restore(place: Path, parts: dict[str, Any], identity: dict[str, Any]) -> tuple[int, float]:
    """Loads an interrupted run's state into its `parts`; returns the epochs done and the seconds spent."""
    if not place.exists():
        return 0, 0.0
    try:
        state = torch.load(place, weights_only=True, map_location="cpu")
        epoch = int(state["epoch"])
        if state["identity"] != identity:
            return 0, 0.0
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return epoch, float(state.get("seconds", 0.0))
    except Exception:
        raise UserError(f"training checkpoint {place} is damaged: delete it to start again") from None


def _store(place: Path, parts: dict[str, Any], identity: dict[str, Any], epoch: int, seconds: float) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"identity": identity, "epoch": epoch, "seconds": seconds, **states}, partial)
    partial.replace(place)


def train(
    network: nn.Module,
    defense: Defense,
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    resume: Path | None = None,
    origin: str | None = None,
) -> Iterator[TrainingStep]:
    """Trains `network` in place on `dataset`, yielding after every step.

    Randomness depends on (seed, epoch, sample) alone, so a run that was stopped continues from its last
    finished epoch (`resume`) to the weights of an unbroken one. `origin`: the hash of weights it began from.
    Raises UserError for no epochs, images or labels that mislead, and a loss that is no number.
    """
    check_asked(dataset, recipe.epochs)
    defense.before_training(network)
    channels_last(network.to(device)).train()
    optimizer = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    identity = _identity(defense, recipe, seed, dataset.sha256, origin)
    parts: dict[str, Any] = {"network": network, "optimizer": optimizer, **_average(network, recipe)}
    done, spent = _restore(resume, parts, identity) if resume else (0, 0.0)
    begun = time.perf_counter() - spent
    per_epoch = len(_cut(torch.arange(len(dataset)), recipe.batch_size))
    randomness = Randomness(seed)
    for epoch in range(done, recipe.epochs):
        here = randomness.child("epoch", epoch)
        order = torch.randperm(len(dataset), generator=here.child("order").generator())
        for number, index in enumerate(_cut(order, recipe.batch_size)):
            step = epoch * per_epoch + number
            progress = step / (recipe.epochs * per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(progress)
            batch = inside(dataset.batch(index), dataset.name).to(device)
            batch = augmented(batch, recipe.augmentation, here)
            with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = defense.loss(network, batch, progress, here)
            _descend(_finite(loss, epoch, recipe), defense, **parts)
            spent = time.perf_counter() - begun
            yield TrainingStep(epoch, recipe.epochs, step + 1, recipe.epochs * per_epoch, loss.item(), spent)
        if resume:
            _store(resume, parts, identity, epoch + 1, spent)
    if recipe.average:
        _take_average(network, parts["average"], dataset, device)
    network.eval()
    defense.after_training(network)


def _cut(order: Tensor, size: int) -> list[Tensor]:
    """`order` (n,) in batches of `size`; one sample left over joins the batch before it.

    Alone it has no statistics to be normalised by.
    """
    parts = list(order.split(size))
    if len(parts) > 1 and size > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _finite(loss: Tensor, epoch: int, recipe: Recipe) -> Tensor:
    """`loss`; raises UserError where it is no number, before a step that would make the weights none."""
    if not bool(torch.isfinite(loss)):
        raise UserError(
            f"training has diverged: the loss is {loss.item():g} in epoch {epoch + 1} of {recipe.epochs}: "
            "take smaller parameters of the defence, or a smaller learning rate"
        )
    return loss


def _average(network: nn.Module, recipe: Recipe) -> dict[str, AveragedModel]:
    """The running mean of the weights, where the recipe asks for one."""
    if not recipe.average:
        return {}
    mean = get_ema_multi_avg_fn(recipe.average)
    return {"average": AveragedModel(network, multi_avg_fn=mean, use_buffers=True)}


def _identity(defense: Defense, recipe: Recipe, seed: int, data: str, origin: str | None) -> dict[str, Any]:
    """What a stopped run must share with the one that goes on from it."""
    described = {"defense": defense.parameters(), "recipe": recipe.model_dump(), "seed": seed, "data": data}
    return {**described, "origin": origin} if origin else described


def _take_average(
    network: nn.Module, average: AveragedModel, dataset: Dataset, device: torch.device | str
) -> None:
    """Gives `network` the averaged weights, and statistics of their own where it normalises by batches."""
    network.load_state_dict(average.module.state_dict())
    everything = torch.arange(len(dataset)).split(STATISTICS)
    update_bn((dataset.batch(index).to(device).x for index in everything), network)


def _descend(
    loss: Tensor,
    defense: Defense,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None = None,
) -> None:
    """One step down `loss`, and what follows every step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    defense.after_step(network)
    if average is not None:
        average.update_parameters(network)


def channels_last(network: nn.Module) -> nn.Module:
    """`network` with its kernels laid out channels last: half again as fast on a CPU, the same function."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def accuracy(
    network: nn.Module, dataset: Dataset, device: torch.device | str = "cpu", size: int = 1000
) -> float:
    """The fraction of `dataset` that `network` classifies correctly."""
    right = 0
    with frozen(network), torch.inference_mode():
        for index in torch.arange(len(dataset)).split(size):
            batch = dataset.batch(index).to(device)
            right += int((network(batch.x).argmax(1) == batch.y).sum())
    return right / len(dataset)


def new_network(architecture: Architecture, seed: int) -> nn.Module:
    """An untrained network whose weights depend on `seed` alone; the global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Randomness(seed).child("weights").seed & ((1 << 63) - 1))
        return architecture.build()
