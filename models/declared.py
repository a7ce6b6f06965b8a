"""A model as its user should have declared it, going by the signs that it shows (models.probes)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import Classifier

# As many as attacks judge at once.
MOST = 256


class _Logarithm(nn.Module):
    """The network's probabilities as logits: their logarithm, which is what a softmax was taken of."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.network(x)
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


class _Lowered(nn.Module):
    """One-hot labels, less 1: probabilities no more, which attacks refuse, and the same decisions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        labels: Tensor = self.network(x)
        return labels.double() - 1


class _InBatches(nn.Module):
    """A network whose answers depend on the batch, asked about `size` inputs at once, whoever asks.

    The last ones stand beside copies of the first of them.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == self.size:
            whole: Tensor = self.network(x)
            return whole
        beside = x[:1].expand(-len(x) % self.size, *x.shape[1:])
        parts = torch.cat([x, beside]).split(self.size)
        return torch.cat([self.network(part) for part in parts])[: len(x)]


def as_declared(model: Classifier, words: set[str], size: int) -> Classifier:
    """The model as it should have been declared by its signs; the caller's own is left as it was.

    Probabilities and labels become scores that attacks accept, which changes no decision; what is random
    has its gradients and verdicts averaged; what depends on the batch is asked about `size` inputs at once.
    """
    network, surrogate = model.network, model.surrogate
    if words & {"probabilities", "labels"}:
        scores = _Logarithm if "probabilities" in words else _Lowered
        network, surrogate = scores(network), None if surrogate is None else scores(surrogate)
    if "batch-dependent" in words:
        size = min(size, MOST)
        network = _InBatches(network, size)
        surrogate = None if surrogate is None else _InBatches(surrogate, size)
    return Classifier(
        network,
        num_classes=model.num_classes,
        box=model.box,
        name=model.name,
        stochastic=model.stochastic or "random" in words,
        surrogate=surrogate,
    )
