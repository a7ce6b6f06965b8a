"""Several trained networks as one: the mean of their logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from defenses.inputs import InputDefense, register_input_defense
from defenses.static import architecture_of, misfit, need_weights, static_network
from models.architecture import Architecture
from models.base import Classifier
from models.errors import UserError
from models.naming import read_names


class MeanLogits(nn.Module):
    """The mean of several networks' logits (n, classes) on the same images (n, c, h, w)."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.members[0](x)
        for member in self.members[1:]:
            total = total + member(x)
        return total / len(self.members)


@register_input_defense("ensemble")
@dataclass(frozen=True, kw_only=True)
class Ensemble(InputDefense):
    """Takes the mean of the network's logits and those of the trained networks `of` (zoo names, & between).

    Adversaries see and differentiate all of them, and certificates bound the mean as one network: the least
    margin of a mean is at least the mean of the members' least margins, so that members may be certified
    together where one of them is not alone. What stands at the input before it is seen by the first alone.
    With `shared` the first so many layers are the network's own for all: for members trained on from one,
    whose first layers hardly differ. A clamp of every pixel is then one clamp, and no certificate has to
    allow for two that move apart.
    Raises UserError for no name, one that cannot be read, one without weights, or layers that are not alike.
    Source: Yang et al. 2022, 2107.10873 (weighted ensemble, here of equal weights).
    """

    paper = "Yang, Li, Xu, Kailkhura, Xie, Li 2022, 2107.10873"

    of: str = "conv-small"
    shared: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared < 0:
            raise UserError(f"ensemble needs a number of layers, shared=0 or more, not {self.shared}")
        if not read_names(self.of):
            raise UserError("ensemble needs the names of other trained networks: ensemble(of=conv-small)")

    def around(self, model: Classifier, architecture: Architecture) -> tuple[nn.Module, nn.Module | None]:
        names = read_names(self.of)
        need_weights(self.name, names)
        others = {name: static_network(name, model.device) for name in names}
        network = self._together(model.network, others)
        return network, None if model.surrogate is None else self._together(model.surrogate, others)

    def refuses(self, architecture: Architecture) -> str | None:
        names = read_names(self.of)
        reasons = (misfit(name, architecture) for name in names)
        return next((reason for reason in reasons if reason), None) or self._unlike(
            architecture.build(), {name: architecture_of(name).build() for name in names}
        )

    def _together(self, network: nn.Module, others: dict[str, nn.Module]) -> nn.Module:
        if reason := self._unlike(network, others):
            raise UserError(f"ensemble(shared={self.shared}): {reason}")
        members = [network, *others.values()]
        if not self.shared:
            return MeanLogits(members).eval()
        chains = [list(member.children()) for member in members]
        ends: list[nn.Module] = [nn.Sequential(*chain[self.shared :]) for chain in chains]
        return nn.Sequential(*chains[0][: self.shared], MeanLogits(ends)).eval()

    def _unlike(self, network: nn.Module, others: dict[str, nn.Module]) -> str | None:
        """Why the first `shared` layers of `network` cannot stand in those of `others`, or None."""
        own = _first_layers(network, self.shared)
        for name, other in others.items():
            if own is None or _first_layers(other, self.shared) != own:
                return (
                    f"'{name}' does not begin with {self.shared} layers like the network's: leave shared out"
                )
        return None


def _first_layers(network: nn.Module, count: int) -> list[tuple[str, list[torch.Size]]] | None:
    """The first `count` layers of a chain, with their parameters' shapes; None where it is no such chain."""
    if not count:
        return []
    layers = list(network.children())
    if type(network) is not nn.Sequential or len(layers) <= count:
        return None
    return [(repr(layer), [entry.shape for entry in layer.state_dict().values()]) for layer in layers[:count]]
