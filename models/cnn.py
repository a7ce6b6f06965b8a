"""Small convolutional networks that convex certificates were designed on."""

from torch import nn

from models.architecture import register_model
from models.recipe import Recipe


@register_model(
    "conv-small",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="Wong & Kolter 2018, section 5",
    recipe=Recipe(epochs=15, learning_rate=2e-3),
)
def conv_small() -> nn.Module:
    """conv16 4x4 stride 2, conv32 4x4 stride 2, FC100, FC10, with ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
