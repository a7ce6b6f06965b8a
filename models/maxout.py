"""Goodfellow's maxout network for MNIST: the first network that was trained on adversarial examples."""

from torch import Tensor, nn

from models.architecture import register_model
from models.recipe import Recipe


class Maxout(nn.Module):
    """The largest of `pieces` affine functions, for each of `width` units."""

    def __init__(self, inputs: int, width: int, pieces: int) -> None:
        super().__init__()
        self.affine = nn.Linear(inputs, width * pieces)
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x).unflatten(1, (-1, self.pieces)).amax(2)


@register_model(
    "maxout",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="Goodfellow et al. 2013, 1302.4389, section 5.1; Goodfellow, Shlens, Szegedy 2015",
    recipe=Recipe(epochs=15, learning_rate=5e-4),
)
def maxout() -> nn.Module:
    """784-240-240-10 with maxout units of five pieces, dropout before each layer."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),
        Maxout(784, 240, 5),
        nn.Dropout(0.5),
        Maxout(240, 240, 5),
        nn.Dropout(0.5),
        nn.Linear(240, 10),
    )
