"""The hidden units that an attack exploits, and what is left of the attack without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from attacks.pgd import PGD
from bench.analysis.stored import Dissection, Unit, Units
from models.base import Batch, Classifier, frozen
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh, nn.Hardswish),
)
DRAWS, TOP, ROWS = 10, 20, 256
COUNTS = [count for power in range(6) for count in (10**power, 2 * 10**power, 5 * 10**power)]


def units(
    models: Sequence[Classifier],
    batch: Batch,
    threat: ThreatModel,
    randomness: Randomness,
    *,
    layer: str | None = None,
    attack: PGD | None = None,
) -> Units:
    """Which units of a hidden layer the attack moves, and whether it needs them, for every model.

    A unit is a channel or a neuron, its activation the peak over positions. Units are ordered by the mean
    |shift| of their activation from the clean to the adversarial image, over the samples that the attack
    breaks. Removing a unit sets it to 0; the same adversarial images are then judged again, against as many
    units drawn at random (the mean of DRAWS draws). `layer` names an activation module, by default the last.
    Raises UserError where a model has none, or where the attack breaks nothing.
    Source: Bau, Zhu, Strobelt, Lapedriza, Zhou, Torralba 2020, 2009.05041.
    """
    attack = attack or PGD()
    return Units(
        attack=attack.name,
        norm=threat.norm,
        eps=threat.radius,
        n=len(batch),
        draws=DRAWS,
        dissections=[_dissection(model, batch, threat, randomness, layer, attack) for model in models],
    )


def _dissection(
    model: Classifier,
    batch: Batch,
    threat: ThreatModel,
    randomness: Randomness,
    layer: str | None,
    attack: PGD,
) -> Dissection:
    name, module = activation_layer(model, layer)
    found = attack.run(model, batch, threat, randomness.child("attack"))
    broken = (found.clean & found.success).nonzero()[:, 0]
    if not len(broken):
        raise UserError(
            f"{attack.name} breaks none of {len(batch)} images of '{model.name}': raise --eps or --limit"
        )
    before, after = peaks(model, module, batch.x), peaks(model, module, found.x_adv[broken])
    shift = after - before[broken]
    order = shift.abs().mean(0).argsort(descending=True, stable=True)
    judged = _Ablation(model, module, batch, found.x_adv[broken], batch.y[broken])
    removed = [0, *takewhile(lambda count: count < len(order), COUNTS), len(order)]
    top = [judged(order[:count]) for count in removed]
    control = [_random(judged, count, len(order), randomness.child("units")) for count in removed]
    became = judged.classes(found.x_adv[broken])
    confusion = torch.zeros(model.num_classes, model.num_classes, dtype=torch.int64)
    confusion.index_put_((batch.y[broken].cpu(), became.cpu()), torch.tensor(1), accumulate=True)
    return Dissection(
        model=model.name,
        layer=name,
        units=len(order),
        right=int(found.clean.sum()),
        broken=len(broken),
        top=_described(order[:TOP], shift, before, batch.y, model.num_classes),
        removed=removed,
        success=[success for success, _ in top],
        success_random=[success for success, _ in control],
        clean=[clean for _, clean in top],
        clean_random=[clean for _, clean in control],
        confusion=confusion.tolist(),
    )


def activation_layer(model: Classifier, layer: str | None = None) -> tuple[str, nn.Module]:
    """The activation module of a name within the model's network, or the last one.

    Raises UserError where there is none: activations that are function calls cannot be looked into.
    """
    known = {
        name: module for name, module in model.network.named_modules() if isinstance(module, ACTIVATIONS)
    }
    if not known:
        raise UserError(f"model '{model.name}' has no activation module (nn.ReLU, ...) to look into")
    if layer is not None and layer not in known:
        raise UserError(f"model '{model.name}' has no activation '{layer}': it has {', '.join(known)}")
    name = layer if layer is not None else list(known)[-1]
    return name, known[name]


@contextmanager
def _watched(module: nn.Module, watch: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Shows the module's output to `watch`, whose answer takes its place where it gives one."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: watch(output))
    try:
        yield
    finally:
        handle.remove()


def peaks(model: Classifier, module: nn.Module, x: Tensor) -> Tensor:
    """The peak activation of every unit of `module` at inputs x (n, ...): (n, units).

    Raises UserError where a pass uses the module never or several times.
    """
    seen: list[Tensor] = []

    def keep(output: Tensor) -> None:
        seen.append(output.flatten(2).amax(2) if output.dim() > 2 else output)

    with frozen(model), torch.no_grad(), _watched(module, keep):
        for part in x.split(ROWS):
            model.logits(part)
    found = torch.cat(seen) if seen else x.new_zeros(0, 0)
    if len(found) != len(x):
        raise UserError(
            f"model '{model.name}' does not use this activation once a pass: choose another layer"
        )
    return found


class _Ablation:
    """What is left of attack and accuracy when units (k,) are set to 0."""

    def __init__(self, model: Classifier, module: nn.Module, batch: Batch, x_adv: Tensor, y: Tensor) -> None:
        self.model, self.module, self.batch, self.x_adv, self.y = model, module, batch, x_adv, y

    def __call__(self, units: Tensor) -> tuple[float, float]:
        """(share of the adversarial images that are misclassified, clean accuracy)."""

        def remove(output: Tensor) -> Tensor:
            return output.index_fill(1, units, 0.0)

        with _watched(self.module, remove):
            fooled = self.classes(self.x_adv) != self.y
            right = self.classes(self.batch.x) == self.batch.y
        return float(fooled.double().mean()), float(right.double().mean())

    def classes(self, x: Tensor) -> Tensor:
        """The predicted classes (n,)."""
        with frozen(self.model), torch.no_grad():
            return torch.cat([self.model.logits(part).argmax(1) for part in x.split(ROWS)])


def _random(judged: _Ablation, count: int, units: int, randomness: Randomness) -> tuple[float, float]:
    """The means over DRAWS draws of `count` units; draws are nested from one count to the next."""
    if count in (0, units):
        return judged(torch.arange(count, device=judged.y.device))
    scores = randomness.uniform(torch.arange(DRAWS), (units,))
    order = scores.argsort(1).to(judged.y.device)
    pairs = torch.tensor([judged(row[:count]) for row in order], dtype=torch.float64)
    success, clean = pairs.mean(0).tolist()
    return success, clean


def _described(units: Tensor, shift: Tensor, before: Tensor, y: Tensor, classes: int) -> list[Unit]:
    rows = []
    for unit in units.tolist():
        scores = {label: area(before[:, unit], y == label) for label in range(classes)}
        # Of classes told equally well, and of those without an image, the first.
        best = max(scores, key=lambda label: scores[label])
        rows.append(
            Unit(
                unit=unit,
                shift=float(shift[:, unit].abs().mean()),
                signed=float(shift[:, unit].mean()),
                label=best,
                auc=scores[best],
            )
        )
    return rows


def area(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve: P(score of a positive > of a negative) + P(equal) / 2, by ranks.

    0.5 where either side has no sample.
    """
    inside = int(positive.sum())
    outside = len(positive) - inside
    if not inside or not outside:
        return 0.5
    ranks = rankdata(scores.cpu().numpy())[positive.cpu().numpy()]
    return float((ranks.sum() - inside * (inside + 1) / 2) / (inside * outside))
