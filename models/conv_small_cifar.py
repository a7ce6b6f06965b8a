"""The small convolutional network of convex certificates for CIFAR-10."""

from torch import nn

from models.architecture import register_model
from models.recipe import Recipe


@register_model(
    "conv-small-cifar",
    input_shape=(3, 32, 32),
    num_classes=10,
    paper="Wong et al. 2018, 1805.12514, section 4 (small); CNN-A of Dathathri et al. 2020, 2010.11645",
    recipe=Recipe(epochs=40, learning_rate=1e-3, augmentation="flip-and-shift"),
    data="cifar10-jpeg",
)
def conv_small_cifar() -> nn.Module:
    """conv16 4x4 stride 2, conv32 4x4 stride 2, FC100, FC10, with ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
