"""Accuracy against eps of several models on one axis: whether sparsity holds off an attack."""

from __future__ import annotations

from collections.abc import Sequence

from attacks.pgd import PGD
from bench.analysis.stored import Curve, Sparsity
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel

POINTS = 9
"""Values of eps from 0 to the largest, both included."""


def sparsity(
    models: Sequence[Classifier],
    batch: Batch,
    threat: ThreatModel,
    randomness: Randomness,
    *,
    attack: PGD | None = None,
) -> Sparsity:
    """The accuracy that the attack leaves each model at eps = 0 .. threat.eps, on the same images.

    A perturbation that is allowed at one eps is allowed at every larger one, so a broken sample stays broken
    and is not attacked again. zeros is the share of weights that are exactly 0.
    Raises UserError for an eps that is not positive.
    Source: Gopalakrishnan, Marzi, Madhow, Pedarsani 2018, 1810.10625v1, figure 6.
    """
    attack = attack or PGD()
    if not 0 < threat.radius < float("inf"):
        raise UserError(f"a curve needs a largest eps > 0, not {threat.radius:g}")
    radii = [threat.radius * place / (POINTS - 1) for place in range(POINTS)]
    return Sparsity(
        attack=attack.name,
        norm=threat.norm,
        n=len(batch),
        eps=radii,
        curves=[
            Curve(
                model=model.name,
                zeros=zero_weights(model),
                accuracy=_accuracies(model, batch, threat, radii, randomness, attack),
            )
            for model in models
        ],
    )


def _accuracies(
    model: Classifier,
    batch: Batch,
    threat: ThreatModel,
    radii: list[float],
    randomness: Randomness,
    attack: PGD,
) -> list[float]:
    standing, left = batch, []
    for radius in radii:
        if len(standing):
            found = attack.run(model, standing, threat.at(radius), randomness)
            standing = standing[~found.success]
        left.append(len(standing) / len(batch))
    return left


def zero_weights(model: Classifier) -> float:
    """The share of a network's weights, biases apart, that are exactly 0; 0 where it has none."""
    weights = [parameter.detach() for parameter in model.network.parameters() if parameter.dim() > 1]
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0
