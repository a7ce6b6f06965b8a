"""A wide convolutional network behind a ramp, with batch norm, for certified training at large eps."""

from torch import nn

from models.architecture import register_model
from models.conv_ramp import ramp
from models.recipe import Recipe


@register_model(
    "conv-ramp-wide",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="our own; batch norm after Shi et al. 2021, 2103.17268",
    recipe=Recipe(epochs=15, learning_rate=1e-3, precision="bfloat16"),
)
def conv_ramp_wide() -> nn.Module:
    """A learned ramp, conv64 and conv128 4x4 stride 2, conv128 3x3, FC256, FC10, with batch norm and ReLU."""
    layers: list[nn.Module] = ramp()
    for inputs, width, kernel, stride in ((1, 64, 4, 2), (64, 128, 4, 2), (128, 128, 3, 1)):
        layers += [
            nn.Conv2d(inputs, width, kernel, stride=stride, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    layers += [nn.Flatten(), nn.Linear(128 * 7 * 7, 256), nn.BatchNorm1d(256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))
