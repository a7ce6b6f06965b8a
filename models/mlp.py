"""Fully connected networks for MNIST."""

from torch import nn

from models.architecture import register_model
from models.recipe import Recipe


@register_model(
    "fc500-150-10",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="DeepFool Table 1",
    recipe=Recipe(epochs=20, learning_rate=1e-3),
)
def fc500_150_10() -> nn.Module:
    """784-500-150-10 with ReLU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 500),
        nn.ReLU(),
        nn.Linear(500, 150),
        nn.ReLU(),
        nn.Linear(150, 10),
    )
