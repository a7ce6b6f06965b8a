"""A convolutional network for German traffic signs, of the kind that RP2's stickers were made for."""

import torch
from torch import Tensor, nn

from models.architecture import register_model
from models.recipe import Recipe


class SeveralScales(nn.Module):
    """Three stages of two 5x5 convolutions and a pool; the features of all three go to the classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.colour = nn.Conv2d(3, 3, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, width, 5, padding=2), nn.ReLU(),
                nn.Conv2d(width, width, 5, padding=2), nn.ReLU(),
                nn.MaxPool2d(2), nn.Dropout(0.5),
            )
            for inputs, width in ((3, 32), (32, 64), (64, 128))
        )  # fmt: skip
        features = 32 * 16 * 16 + 64 * 8 * 8 + 128 * 4 * 4
        self.classifier = nn.Sequential(
            nn.Linear(features, 1024), nn.ReLU(), nn.Dropout(0.5), nn.Linear(1024, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x, scales = self.colour(x), []
        for stage in self.stages:
            x = stage(x)
            scales.append(x.flatten(1))
        out: Tensor = self.classifier(torch.cat(scales, 1))
        return out


@register_model(
    "gtsrb-cnn",
    input_shape=(3, 32, 32),
    num_classes=43,
    paper="Eykholt et al. 2018, 1707.08945, section 4.1 (after Yadav's network)",
    recipe=Recipe(epochs=20, learning_rate=1e-3),
    data="gtsrb",
)
def gtsrb_cnn() -> nn.Module:
    """A learned colour space, three scales of 5x5 convolutions of width 32, 64, 128, FC1024, FC43."""
    return SeveralScales(43)
