"""The linear classifier of threes against sevens, on which robustness has closed forms."""

from torch import nn

from models.architecture import register_model
from models.recipe import Recipe


@register_model(
    "linear-3-7",
    input_shape=(1, 28, 28),
    num_classes=2,
    paper="Goodfellow, Shlens, Szegedy 2015, section 5; Gopalakrishnan et al. 2018, 1810.10625v1",
    recipe=Recipe(epochs=10, learning_rate=1e-3),
    data="mnist-3-7",
)
def linear_3_7() -> nn.Module:
    """One affine layer from 784 pixels to two logits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
