"""Batch normalisation in certified training: one affine map, by the statistics of the clean batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


class Normalised(nn.Sequential):
    """A layer and the batch normalisation of its outputs, which are one layer again after training."""

    def fold(self) -> nn.Module:
        """The one layer that does what both do in eval mode."""
        layer, norm = self
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        if isinstance(layer, nn.Conv2d):
            return fuse_conv_bn_eval(layer, norm)
        assert isinstance(layer, nn.Linear)
        return fuse_linear_bn_eval(layer, norm)


def add_normalisation(network: nn.Module) -> None:
    """Puts batch normalisation behind every layer with weights of `network` but the last, in place."""
    layers = [child for _, _, child in _children(network) if isinstance(child, nn.Linear | nn.Conv2d)]
    for owner, name, layer in _children(network):
        if isinstance(layer, nn.Linear) and layer is not layers[-1]:
            setattr(owner, name, Normalised(layer, nn.BatchNorm1d(layer.out_features)))
        elif isinstance(layer, nn.Conv2d) and layer is not layers[-1]:
            setattr(owner, name, Normalised(layer, nn.BatchNorm2d(layer.out_channels)))


def fold_normalisation(network: nn.Module) -> None:
    """Takes out what `add_normalisation` put in: `network`, in eval mode, computes the same without it."""
    for owner, name, child in _children(network):
        if isinstance(child, Normalised):
            setattr(owner, name, child.fold())


def _children(network: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(owner, name, child) for owner in network.modules() for name, child in owner.named_children()]


@contextmanager
def clean_statistics(network: nn.Module, x: Tensor) -> Iterator[Tensor | None]:
    """Within it `network` normalises by the statistics of the clean batch x (n, ...), and can be bounded.

    In train mode a sample's output depends on its batch, and no certificate reads such a network. Here it
    is an affine map, whose statistics are differentiable functions of the parameters, the same for the
    images and for their bounds. Yields the logits (n, classes) of x, whose pass has also moved the running
    statistics, which are back at the end; None where `network` normalises nothing by its batch.
    Source: Shi et al. 2021, 2103.17268 (batch normalisation after every layer in certified training).
    """
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if not layers:
        yield None
        return
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def measure(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].movedim(1, -1).flatten(0, -2).to(layer.running_mean.dtype)
        mean = values.mean(0)
        found[layer] = mean, (values - mean).square().mean(0)

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    try:
        logits: Tensor = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    running = [(layer, layer.running_mean, layer.running_var) for layer in layers]
    try:
        for layer in layers:
            layer.eval()
            layer.running_mean, layer.running_var = found.get(layer, (layer.running_mean, layer.running_var))
        yield logits
    finally:
        for layer, mean, variance in running:
            layer.train()
            layer.running_mean, layer.running_var = mean, variance
