"""Fully connected networks for MNIST."""

from itertools import pairwise

from torch import nn

from models.architecture import register_model
from models.recipe import Recipe


@register_model(
    "fc500-150-10",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="DeepFool Table 1",
    recipe=Recipe(epochs=20, learning_rate=1e-3),
)
def fc500_150_10() -> nn.Module:
    """784-500-150-10 with ReLU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 500),
        nn.ReLU(),
        nn.Linear(500, 150),
        nn.ReLU(),
        nn.Linear(150, 10),
    )


def _chain(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


for depth in (2, 4, 6):

    @register_model(
        f"mlp-256x{depth}",
        input_shape=(1, 28, 28),
        num_classes=10,
        paper="VNN-COMP 2021 and 2022, benchmark mnist_fc",
        recipe=Recipe(epochs=12, learning_rate=1e-3),
    )
    def mlp_256(depth: int = depth) -> nn.Module:
        """784 - 256 a hidden layer - 10 with ReLU: the depths that verifiers are compared on."""
        return _chain(784, *[256] * depth, 10)


@register_model(
    "mlp-tanh",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="CROWN (Zhang et al. 2018, 1811.00866), section 5.1",
    recipe=Recipe(epochs=12, learning_rate=1e-3),
)
def mlp_tanh() -> nn.Module:
    """784-100-100-10 with tanh: bounds that are no triangles."""
    return _chain(784, 100, 100, 10, activation=nn.Tanh)


@register_model(
    "mlp-sigmoid",
    input_shape=(1, 28, 28),
    num_classes=10,
    paper="CROWN (Zhang et al. 2018, 1811.00866), section 5.1",
    recipe=Recipe(epochs=12, learning_rate=2e-3),
)
def mlp_sigmoid() -> nn.Module:
    """784-100-100-10 with the logistic function: it saturates, and its attacks' gradients with it."""
    return _chain(784, 100, 100, 10, activation=nn.Sigmoid)
