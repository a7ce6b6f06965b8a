"""A small vision transformer for MNIST."""

import torch
from torch import Tensor, nn

from models.architecture import register_model
from models.recipe import Recipe


class TokenNorm(nn.Module):
    """Batch normalisation of each feature over samples and tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, t, width) to the same shape."""
        return self.norm(tokens.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Attention and two linear layers, each behind a normalisation and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = TokenNorm(width), TokenNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.apart = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, t, width) to the same shape."""
        here = self.before(tokens)
        tokens = tokens + self.attention(here, here, here, need_weights=False)[0]
        return tokens + self.apart(self.between(tokens))


class VisionTransformer(nn.Module):
    """Patches as tokens with learned places, blocks, and the mean of the tokens before the last layer."""

    def __init__(self, *, side: int, patch: int, width: int, heads: int, depth: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.places = nn.Parameter(0.1 * torch.randn(1, (side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.last, self.head = TokenNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, side, side) in [0, 1] to logits (n, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.last(self.blocks(tokens)).mean(1))


@register_model(
    "vit",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="Dosovitskiy et al. 2021, 2010.11929",
    recipe=Recipe(epochs=12, learning_rate=1e-3),
)
def vit() -> nn.Module:
    """16 patches 7x7 as tokens of width 32, two blocks of 2 heads, batch norm, mean of the tokens, FC10."""
    return VisionTransformer(side=28, patch=7, width=32, heads=2, depth=2, classes=10)
