"""LeNet for MNIST, the convolutional network of DeepFool's Table 1."""

from torch import nn

from models.architecture import register_model
from models.recipe import Recipe


@register_model(
    "lenet",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="LeCun et al. 1998; DeepFool Table 1",
    recipe=Recipe(epochs=12, learning_rate=1e-3),
)
def lenet() -> nn.Module:
    """conv20 5x5, pool, conv50 5x5, pool, FC500, FC10 (Caffe's LeNet), ReLU after each pool and FC500."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )
