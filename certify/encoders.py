"""PyTorch's transformer encoders as what they compute: calls of their own layers, which have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from models.errors import NotApplicable


def _without_mask(given: dict[str, Any]) -> None:
    if any(value is not None and value is not False for value in given.values()):
        raise NotApplicable("a transformer encoder with a mask is not understood by the certificates")


def encoder_layer(layer: nn.TransformerEncoderLayer, tokens: Any, **given: Any) -> Any:
    """nn.TransformerEncoderLayer in eval mode: attention and two linear layers, each added to its input."""
    _without_mask(given)

    def attended(here: Any) -> Any:
        return layer.dropout1(layer.self_attn(here, here, here, need_weights=False)[0])

    def apart(here: Any) -> Any:
        return layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(here)))))

    if layer.norm_first:
        tokens = tokens + attended(layer.norm1(tokens))
        return tokens + apart(layer.norm2(tokens))
    tokens = layer.norm1(tokens + attended(tokens))
    return layer.norm2(tokens + apart(tokens))


def encoder(whole: nn.TransformerEncoder, tokens: Any, **given: Any) -> Any:
    """nn.TransformerEncoder: its layers one after the other, and the last normalisation where it has one."""
    _without_mask(given)
    for layer in whole.layers:
        tokens = layer(tokens)
    return tokens if whole.norm is None else whole.norm(tokens)


COMPOSED: dict[type[nn.Module], Callable[..., Any]] = {
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
}
