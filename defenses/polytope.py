"""Training on the dual bound of the convex outer polytope."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from certify.backward import margins, relax
from certify.graph import trace
from certify.ibp import interval_margins
from defenses.base import Defense, check_radius, check_share, random_layer, register_defense
from defenses.normalisation import clean_statistics
from models.architecture import Architecture
from models.base import Batch
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import ThreatModel


@register_defense("polytope")
@dataclass(frozen=True, kw_only=True)
class PolytopeTraining(Defense):
    """Trains on the certificate itself: the dual bound of the convex outer polytope.

    min_theta k L(f(x), y) + (1 - k) L(-J_eps(x), y), J the dual's lower bounds on z_y - z_j.
    The cross-entropy of the negated bounds is an upper bound on the worst loss in the ball. To make
    this affordable on a CPU, the first `warm` of training bounds the margins by intervals alone
    (Gowal et al. 2018), and the dual that follows takes its intermediate bounds from intervals. The
    radius grows linearly from 0 to `overshoot` times eps over the first `ramp` of training.
    """

    paper = "Wong & Kolter 2018, 1711.00851, eq. 14 (dual on interval intermediate bounds)"

    eps: float = 0.1
    overshoot: float = 1.2
    clean_weight: float = 0.3
    warm: float = 0.875
    ramp: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.name, self.eps, self.overshoot)
        check_share(self.name, clean_weight=self.clean_weight, warm=self.warm, ramp=self.ramp)

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        rise = min(1.0, progress / self.ramp) if self.ramp else 1.0
        threat = ThreatModel("linf", self.eps * self.overshoot * rise)
        with clean_statistics(network, batch.x) as logits:
            graph = trace(network, like=batch.x)
            if progress < self.warm:
                lower = interval_margins(graph, batch.x, batch.y, threat)
            else:
                lower = margins(relax(graph, batch.x, threat), batch.y)
        clean = functional.cross_entropy(network(batch.x) if logits is None else logits, batch.y)
        weight = 1 - (1 - self.clean_weight) * rise
        return weight * clean + (1 - weight) * functional.cross_entropy(-lower, batch.y)

    def recipe(self, architecture: Architecture) -> Recipe:
        return Recipe(epochs=40, batch_size=100, learning_rate=1e-3)

    def refuses(self, architecture: Architecture) -> str | None:
        if any(isinstance(module, nn.MaxPool2d) for module in architecture.build().modules()):
            return "max pooling has no triangle relaxation in Wong & Kolter's dual"
        return random_layer(architecture)
