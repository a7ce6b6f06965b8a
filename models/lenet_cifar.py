"""LeNet for CIFAR-10, one of DeepFool's Table 1."""

from torch import nn

from models.architecture import register_model
from models.recipe import Recipe


@register_model(
    "lenet-cifar",
    input_shape=(3, 32, 32),
    num_classes=10,
    paper="LeCun et al. 1998; DeepFool Table 1 (Caffe's quick CIFAR-10 network)",
    recipe=Recipe(epochs=20, learning_rate=1e-3, weight_decay=1e-4),
    data="cifar10-jpeg",
)
def lenet_cifar() -> nn.Module:
    """conv32, max pool, conv32, average pool, conv64, average pool, FC64, FC10; convolutions 5x5, ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
