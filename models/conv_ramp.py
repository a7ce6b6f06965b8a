"""A convolutional network that first pushes grey pixels towards black or white, for certified training."""

import torch
from torch import nn

from models.architecture import register_model
from models.recipe import Recipe

# Where interval training takes the ramp on MNIST at eps 0.3 from 0.5: an image that is nearly black
# and white can be bounded from the first step.
CENTRE, WIDTH = 0.43, 0.135


def ramp(centre: float = CENTRE, width: float = WIDTH) -> list[nn.Module]:
    """Layers that map a pixel x to clamp((x - centre) / width + 1/2, 0, 1), and learn the two numbers.

    1 - relu(1 - relu(z)) is the clamp of z: convolutions and ReLUs alone, which every certificate reads.
    Interval bounds of the three are exact. What clamps is not trained: it can die, and the network with it.
    """
    rise, turn, back = (
        _scaled(1 / width, 0.5 - centre / width),
        _scaled(-1.0, 1.0),
        _scaled(-1.0, 1.0),
    )
    turn.requires_grad_(False)
    back.requires_grad_(False)
    return [rise, nn.ReLU(), turn, nn.ReLU(), back]


def _scaled(weight: float, bias: float) -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.fill_(bias)  # type: ignore[union-attr]
    return layer


@register_model(
    "conv-ramp",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="our own; conv layers after Wong & Kolter 2018, section 5, twice as wide",
    recipe=Recipe(epochs=15, learning_rate=1e-3),
)
def conv_ramp() -> nn.Module:
    """A learned ramp between black and white, conv32 and conv64 4x4 stride 2, FC256, FC10, with ReLU."""
    return nn.Sequential(
        *ramp(),
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )
