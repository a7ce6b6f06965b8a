"""Training on generated images, of which an independent network must know the label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses.base import Defense, check_share, register_defense
from defenses.static import misfit, need_weights, static_network
from models.architecture import Architecture
from models.base import Batch
from models.data import Dataset
from models.generator import GENERATORS
from models.randomness import Randomness
from models.recipe import Recipe
from models.registry import suggest


@register_defense("vae-augmentation")
@dataclass(frozen=True, kw_only=True)
class VAEAugmentation(Defense):
    """Adds generated images to every batch, those whose label an independent network confirms.

    min_theta (1 - share) L(f(x), y) + share L(f(g), y) over the g that are kept: a generator makes one image
    g for each (x, y), and the `judge`, a trained zoo network that saw no generated image, must give y a
    probability above `threshold`. A generator does not know what changes a label; without the judge its
    mistakes are trained on. Where none is kept the batch counts alone. A step costs two, and a pass of the
    judge: compare with ordinary training of twice the epochs. `generator` is any registered in
    models.generator; keep_rate says how many of its images pass.
    Raises UserError for an unknown generator or judge, a share outside [0, 1], or (when training begins) a
    judge without weights. Source: Kingma, Welling 2014, 1312.6114, for the generator the name speaks of.
    """

    paper = "Kingma, Welling 2014, 1312.6114"

    generator: str = "poses"
    judge: str = "fc500-150-10"
    threshold: float = 0.9
    share: float = 0.5
    epochs: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, threshold=self.threshold, share=self.share)
        if self.generator not in GENERATORS:
            raise suggest("generator", self.generator, GENERATORS.names())

    def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
        made, kept = self.generated(batch, randomness)
        if not bool(kept.any()) or not self.share:
            return functional.cross_entropy(network(batch.x), batch.y)
        logits = network(torch.cat([batch.x, made[kept]]))
        real = functional.cross_entropy(logits[: len(batch)], batch.y)
        return (1 - self.share) * real + self.share * functional.cross_entropy(
            logits[len(batch) :], batch.y[kept]
        )

    def generated(self, batch: Batch, randomness: Randomness) -> tuple[Tensor, Tensor]:
        """One new image for each of the batch's (n, c, h, w), and whether the judge confirms its label."""
        with torch.no_grad():
            made = GENERATORS[self.generator](batch, randomness.child("generator"))
            said = static_network(self.judge, batch.x.device)(made).softmax(1)
        return made, said.gather(1, batch.y[:, None])[:, 0] > self.threshold

    def recipe(self, architecture: Architecture) -> Recipe:
        need_weights(self.name, (self.judge,))
        return Recipe(epochs=self.epochs, batch_size=128, learning_rate=1e-3)

    def refuses(self, architecture: Architecture) -> str | None:
        if len(architecture.input_shape) != 3:
            return "its inputs are no images"
        return misfit(self.judge, architecture)


def keep_rate(defense: VAEAugmentation, dataset: Dataset, seed: int = 0) -> float:
    """The share of one generated image for each of `dataset` that the judge lets pass."""
    parts = torch.arange(len(dataset)).split(500)
    kept = [defense.generated(dataset.batch(index), Randomness(seed))[1] for index in parts]
    return float(torch.cat(kept).double().mean())
