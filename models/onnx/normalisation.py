"""ONNX normalisation by a sample's own statistics: attacks run on it, certificates refuse it by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.onnx.conversion import Conversion, Known, operator


def _fitted(conversion: Conversion, place: int, shape: tuple[int, ...]) -> Tensor | None:
    """The scale or shift at a place of the inputs, as one of `shape`."""
    if conversion.input(place) is None:
        return None
    found = conversion.tensor(conversion.fixed(place))
    try:
        return torch.broadcast_to(found, shape).contiguous()
    except RuntimeError:
        conversion.refuse(f"has a scale or shift of shape {tuple(found.shape)} where {shape} is normalised")


@operator("LayerNormalization")
def layer_normalization(conversion: Conversion) -> Known:
    """Mean 0 and variance 1 over all axes from `axis` on."""
    value = conversion.symbol()
    first = conversion.dimension(value, int(conversion.attribute("axis", -1)))
    shape = tuple(value.example.shape[first:])
    scale, shift = _fitted(conversion, 1, shape), _fitted(conversion, 2, shape)
    return conversion.call(
        F.layer_norm, value, shape, scale, shift, float(conversion.attribute("epsilon", 1e-5))
    )


@operator("InstanceNormalization", "GroupNormalization")
def group_normalization(conversion: Conversion) -> Known:
    """Mean 0 and variance 1 over the entries of each group of channels, or of each channel."""
    value = conversion.symbol()
    value = conversion.with_samples(value, len(value.shape))
    channels = value.shape[1]
    groups = channels
    if conversion.current.op_type == "GroupNormalization":
        groups = int(conversion.attribute("num_groups"))
    # Before opset 21 groups have a scale each, not channels.
    per_group = groups != channels and conversion.opsets.get("", 1) < 21
    scale, shift = (_fitted(conversion, place, (groups if per_group else channels,)) for place in (1, 2))
    if per_group and scale is not None and shift is not None:
        scale, shift = (part.repeat_interleave(channels // groups) for part in (scale, shift))
    epsilon = float(conversion.attribute("epsilon", 1e-5))
    return conversion.call(F.group_norm, value, groups, scale, shift, epsilon)


@operator("RMSNormalization")
def root_mean_square(conversion: Conversion) -> Known:
    """Mean square 1 over all axes from `axis` on."""
    value = conversion.symbol()
    first = conversion.dimension(value, int(conversion.attribute("axis", -1)))
    shape = tuple(value.example.shape[first:])
    epsilon = float(conversion.attribute("epsilon", 1e-5))
    return conversion.call(F.rms_norm, value, shape, _fitted(conversion, 1, shape), epsilon)
