"""Network in network for CIFAR-10, one of DeepFool's Table 1."""

from torch import nn

from models.architecture import register_model
from models.recipe import Recipe


def _stage(inputs: int, kernel: int, *widths: int) -> list[nn.Module]:
    """A convolution and 1x1 convolutions behind it, each with ReLU."""
    layers: list[nn.Module] = []
    for place, width in enumerate(widths):
        size = kernel if not place else 1
        layers += [nn.Conv2d(inputs, width, size, padding=size // 2), nn.ReLU()]
        inputs = width
    return layers


@register_model(
    "nin",
    input_shape=(3, 32, 32),
    num_classes=10,
    paper="Lin, Chen, Yan 2014, 1312.4400; DeepFool Table 1",
    recipe=Recipe(epochs=60, learning_rate=1e-3, weight_decay=1e-5),
    data="cifar10-jpeg",
)
def nin() -> nn.Module:
    """Three stages of a convolution and two 1x1 convolutions, dropout between, averaged over the picture."""
    return nn.Sequential(
        *_stage(3, 5, 192, 160, 96),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Dropout(0.5),
        *_stage(96, 5, 192, 192, 192),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Dropout(0.5),
        *_stage(192, 3, 192, 192),
        nn.Conv2d(192, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
