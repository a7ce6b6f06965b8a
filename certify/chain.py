"""The layers of a network that is a chain, by the names, bytes and words that proof and witness files use."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from models.errors import NotApplicable

Chain = list[tuple[str, nn.Module]]


def chain(network: nn.Module, pools: bool = False, prefix: str = "") -> Chain:
    """The layers in order, each with the prefix of its weights' names; `pools` lets in those of images.

    Raises NotApplicable, naming it, for any other than Linear, Conv2d, Flatten, ReLU and these.
    """
    if type(network) is nn.Sequential:
        # Not named_children: it leaves out a module that stands in two places.
        parts = zip(network._modules, network, strict=True)
        return [layer for name, part in parts for layer in chain(part, pools, f"{prefix}{name}.")]
    if isinstance(network, nn.Dropout | nn.Identity):
        return []
    if not (_plain(network) or (pools and _pool(network))):
        place = f"layer '{prefix.rstrip('.')}'" if prefix else "the network"
        kind, more = ("witness", ", max and average pooling") if pools else ("proof", "")
        raise NotApplicable(
            f"{place} ({type(network).__name__}) has no {kind} files: they speak of "
            f"chains of Linear, Conv2d (zero padding, one group), Flatten and ReLU{more}"
        )
    return [(prefix, network)]


def _plain(layer: nn.Module) -> bool:
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if isinstance(layer, nn.Linear | nn.Conv2d) and "weight" not in dict(layer.named_parameters()):
        return False  # it is computed of others, as under weight normalisation
    if type(layer) is nn.Conv2d:
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) in (nn.Linear, nn.ReLU)


def _pool(layer: nn.Module) -> bool:
    if type(layer) is nn.MaxPool2d:
        return not (layer.ceil_mode or layer.return_indices)
    if type(layer) is nn.AvgPool2d:
        counted = layer.count_include_pad or not any(_pair(layer.padding))
        return counted and not layer.ceil_mode and layer.divisor_override is None
    return False


def described(prefix: str, layer: nn.Module) -> dict[str, object]:
    """What a file says of a layer beside its weights."""
    if isinstance(layer, nn.Conv2d):
        geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return {"kind": "conv", "name": prefix, **geometry}
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        highest = isinstance(layer, nn.MaxPool2d)
        return {
            "kind": "max-pool" if highest else "average-pool",
            "kernel": _pair(layer.kernel_size),
            "stride": _pair(layer.stride),
            "padding": _pair(layer.padding),
            "dilation": _pair(layer.dilation) if isinstance(layer, nn.MaxPool2d) else (1, 1),
        }
    if isinstance(layer, nn.Linear):
        return {"kind": "linear", "name": prefix}
    return {"kind": type(layer).__name__.lower()}


def weights(layers: Chain) -> dict[str, np.ndarray]:
    """Every parameter under the name of the network's own file."""
    return {
        f"{prefix}{name}": array(part) for prefix, layer in layers for name, part in layer.named_parameters()
    }


def array(part: Tensor) -> np.ndarray:
    """The tensor as safetensors writes it without torch."""
    return np.ascontiguousarray(part.detach().cpu().numpy())


def _pair(size: Any) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, tuple) else (size, size)
