"""Small ONNX files of attention, rotated positions and images read between their pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.onnx_cases import BOUNDED, one
from tests.models.onnx_files import File

RANDOM = np.random.default_rng(9)


def attention(
    *shape: int, widths: tuple[int, int, int] = (4, 4, 4), mask: Any = None, **attributes: Any
) -> File:
    """Attention of a value's products with constants; several inputs of four axes from one of them."""
    file = File(1, *shape)
    parts = [file.add("MatMul", "x", file.weights(shape[-1], width)) for width in widths]
    if len(shape) == 3 and "heads" in attributes:
        kept = file.constant(np.arange(attributes.pop("heads")))
        parts = [parts[0], *(file.add("Gather", part, kept, axis=1) for part in parts[1:])]
    more = (
        [] if mask is None else [file.constant(mask, np.asarray(mask).dtype if mask.dtype == bool else None)]
    )
    file.add("Attention", *parts, *more, **attributes)
    return file


def rotated(*shape: int, pairs: int, tokens: int, places: Any = None, **attributes: Any) -> File:
    """RotaryEmbedding by constant angles, of each token or picked from a table."""
    file = File(1, *shape)
    angles = RANDOM.uniform(-3, 3, (7, pairs) if places is not None else (1, tokens, pairs))
    more = [] if places is None else [file.constant([places])]
    file.add(
        "RotaryEmbedding",
        "x",
        file.constant(np.cos(angles)),
        file.constant(np.sin(angles)),
        *more,
        **attributes,
    )
    return file


def moved_by_values() -> File:
    """An image read at places that it gives itself."""
    file = File(1, 2, 4, 5)
    grid = file.add("Transpose", "x", perm=[0, 2, 3, 1])
    file.add("GridSample", "x", grid, padding_mode="border")
    return file


def gated_unit(alpha: float) -> File:
    """SwiGLU of two halves."""
    file = File(1, 6)
    left = file.add("Split", "x", file.constant([3, 3]), axis=1, outputs=2)
    file.add("SwiGLU", left, f"{left[:-1]}1", alpha=alpha)
    return file


HEADS = {"q_num_heads": 2, "kv_num_heads": 2}
KEPT = np.array([[True, False, True], [True, True, False], [False, True, True]])
BIAS = RANDOM.standard_normal((1, 2, 3, 3))
GRID = RANDOM.uniform(-1.3, 1.3, (1, 3, 2, 2))
BOX = RANDOM.uniform(-1.2, 1.2, (1, 2, 1, 3, 3))
PLANE = (1, 2, 4, 5)
CASES: dict[str, tuple[File, int, str | None]] = {
    "attention": (attention(3, 5, **HEADS), 23, BOUNDED),
    "attention by four axes": (attention(2, 3, 5), 23, BOUNDED),
    "attention of shared keys": (attention(4, 3, 5, heads=2), 23, BOUNDED),
    "attention of shared keys in a row": (
        attention(3, 5, widths=(8, 4, 6), q_num_heads=4, kv_num_heads=2, scale=0.3), 23, BOUNDED,
    ),
    "attention to what was": (attention(3, 5, is_causal=1, **HEADS), 23, BOUNDED),
    "attention under a mask": (attention(3, 5, mask=KEPT, **HEADS), 23, BOUNDED),
    "attention with a bias": (attention(2, 3, 5, mask=BIAS), 23, BOUNDED),
    "attention with a bias to what was": (attention(2, 3, 5, mask=BIAS, is_causal=1), 23, BOUNDED),
    "attention with a cap": (attention(3, 5, softcap=0.4, **HEADS), 23, BOUNDED),
    "attention with a cap and a bias of old": (
        attention(2, 3, 5, softcap=0.4, mask=BIAS), 23, BOUNDED,
    ),
    "attention with a cap and a bias": (attention(2, 3, 5, softcap=0.4, mask=BIAS), 24, BOUNDED),
    "rotated": (rotated(2, 3, 4, pairs=2, tokens=3), 23, BOUNDED),
    "rotated in a row": (rotated(3, 8, pairs=2, tokens=3, num_heads=2), 23, BOUNDED),
    "rotated by neighbours": (rotated(2, 3, 4, pairs=2, tokens=3, interleaved=1), 23, BOUNDED),
    "rotated in part": (rotated(2, 3, 6, pairs=2, tokens=3, rotary_embedding_dim=4), 23, BOUNDED),
    "rotated at places": (rotated(2, 3, 4, pairs=2, tokens=3, places=[4, 0, 2]), 23, BOUNDED),
    "sampled": (one("GridSample", GRID, shape=PLANE), 16, BOUNDED),
    "sampled at corners": (
        one("GridSample", GRID, shape=PLANE, align_corners=1, padding_mode="border"), 20, BOUNDED,
    ),
    "sampled by reflection": (one("GridSample", GRID, shape=PLANE, padding_mode="reflection"), 20, BOUNDED),
    "sampled nearest": (one("GridSample", GRID, shape=PLANE, mode="nearest"), 22, BOUNDED),
    "sampled cubic": (one("GridSample", GRID, shape=PLANE, mode="cubic"), 20, BOUNDED),
    "a volume sampled": (one("GridSample", BOX, shape=(1, 2, 3, 4, 2)), 20, BOUNDED),
    "sampled at values": (moved_by_values(), 20, "grid_sample"),
    "reversed": (one("ReverseSequence", [3], shape=(1, 5, 2), batch_axis=0, time_axis=1), 10, BOUNDED),
    "reversed apart": (one("ReverseSequence", [3, 1, 2], shape=(3, 3)), 10, BOUNDED),
    "norms of windows": (
        one("LpPool", shape=PLANE, kernel_shape=[2, 3], strides=[1, 2], pads=[1, 0, 0, 1]), 18, BOUNDED,
    ),
    "sums of windows": (one("LpPool", shape=(1, 2, 7), kernel_shape=[3], p=1), 11, BOUNDED),
    "cubic norms of windows": (one("LpPool", shape=PLANE, kernel_shape=[2, 2], p=3), 11, "pow"),
    "norms of boxes": (
        one("LpPool", shape=(1, 1, 4, 4, 3), kernel_shape=[2, 2, 2], ceil_mode=1, strides=[2, 2, 2], p=1), 18,
        BOUNDED,
    ),
    "cropped": (one("CenterCropPad", [2, 2], shape=(1, 2, 5, 4), axes=[2, 3]), 18, BOUNDED),
    "padded": (one("CenterCropPad", [7, 2], shape=(1, 2, 4, 5), axes=[-2, 3]), 18, BOUNDED),
    "norm of channels": (one("GlobalLpPool", shape=PLANE), 13, BOUNDED),
    "sums of channels": (one("GlobalLpPool", shape=(1, 3, 4), p=1), 13, BOUNDED),
}  # fmt: skip
# What onnxruntime does not run.
OTHERS: dict[str, tuple[File, int]] = {
    "a gated unit": (gated_unit(1.0), 28),
    "a gated unit of another slope": (gated_unit(1.7), 28),
    "a window of attention": (
        attention(3, 5, left_window_size=1, right_window_size=0, **HEADS), 25,
    ),
}  # fmt: skip
