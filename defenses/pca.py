"""The plane in which digits lie: what an image has beside it is dropped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from defenses.inputs import Clamped, InputDefense, StraightThrough, register_input_defense
from defenses.principal_components import MOST, PrincipalComponents, shipped
from models.architecture import Architecture
from models.errors import UserError


class Projected(nn.Module):
    """The orthogonal projection of images (n, c, h, w) on mean + span of the basis' rows (k, c h w)."""

    def __init__(self, basis: PrincipalComponents) -> None:
        super().__init__()
        self.register_buffer("mean", basis.mean.float(), persistent=False)
        self.register_buffer("axes", basis.axes.float(), persistent=False)
        self.mean: Tensor
        self.axes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        inside = (x.flatten(1) - self.mean) @ self.axes.T @ self.axes
        return (inside + self.mean).reshape(x.shape)


@register_input_defense("pca")
@dataclass(frozen=True, kw_only=True)
class PCA(InputDefense):
    """Projects every image on the first `components` principal components of MNIST's training images.

    x' = clamp(mean + V^T V (x - mean)). Adversaries follow its gradient, past the clamp: a perturbation
    within the plane passes whole. The basis ships with the package, fitted on grey images of 28 x 28.
    Raises UserError for components outside 1..100; refuses other images.
    Source: Bhagoji, Cullina, Sitawarin, Mittal 2018, 1704.02654.
    """

    paper = "Bhagoji, Cullina, Sitawarin, Mittal 2018, 1704.02654"

    components: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.components <= MOST:
            raise UserError(f"pca needs between 1 and {MOST} components, not {self.components}")

    def front(self, architecture: Architecture) -> nn.Module:
        return nn.Sequential(Projected(shipped().first(self.components)), Clamped())

    def surrogate(self, front: nn.Module) -> nn.Module:
        assert isinstance(front, nn.Sequential)
        return nn.Sequential(front[0], StraightThrough(front[1]))

    def refuses(self, architecture: Architecture) -> str | None:
        fits = architecture.input_shape == (1, 28, 28) and architecture.data == "mnist"
        return None if fits else "its basis is that of MNIST's grey images of 28 x 28"
