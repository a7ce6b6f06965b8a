"""Several trained networks as one: the mean of their logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from defenses.inputs import InputDefense, register_input_defense
from defenses.static import misfit, need_weights, static_network
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
    Raises UserError for no name, one that cannot be read, or one without weights.
    Source: Yang et al. 2022, 2107.10873 (weighted ensemble, here of equal weights).
    """

    paper = "Yang, Li, Xu, Kailkhura, Xie, Li 2022, 2107.10873"

    of: str = "conv-small"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not read_names(self.of):
            raise UserError("ensemble needs the names of other trained networks: ensemble(of=conv-small)")

    def around(self, model: Classifier, architecture: Architecture) -> tuple[nn.Module, nn.Module | None]:
        names = read_names(self.of)
        need_weights(self.name, names)
        others = [static_network(name, model.device) for name in names]
        network = MeanLogits([model.network, *others]).eval()
        if model.surrogate is None:
            return network, None
        return network, MeanLogits([model.surrogate, *others]).eval()

    def refuses(self, architecture: Architecture) -> str | None:
        reasons = (misfit(name, architecture) for name in read_names(self.of))
        return next((reason for reason in reasons if reason), None)
