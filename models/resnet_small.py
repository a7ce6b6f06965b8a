"""A small residual network with batch normalisation for MNIST."""

from torch import Tensor, nn

from models.architecture import register_model
from models.recipe import Recipe


class Residual(nn.Module):
    """relu(shortcut(x) + f(x)), f two 3x3 convolutions with batch normalisation, the first with `stride`."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        same = inputs == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, width, 1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.shortcut(x) + self.body(x))
        return out


@register_model(
    "resnet-small",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="He et al. 2016, 1512.03385, section 3.3, at a small size",
    recipe=Recipe(epochs=10, learning_rate=1e-3),
)
def resnet_small() -> nn.Module:
    """conv8 4x4 stride 2, residual blocks of width 8 and 16 (stride 2), average over 7x7, FC10."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8, 8, 1),
        Residual(8, 16, 2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )
