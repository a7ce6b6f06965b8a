"""ONNX attention and what stands around it: positions by rotation, gated units."""

from __future__ import annotations

import math
import operator as python

import numpy as np
import torch
import torch.nn.functional as F

from models.onnx.arithmetic import combine
from models.onnx.conversion import Conversion, Known, Symbol, operator
from models.onnx.resizing import along
from models.onnx.shapes import picked

# A score this low has a share of 0, and leaves the digits of others alone as minus infinity would not.
MASKED = -1e6


def _heads(conversion: Conversion, place: int, count: str) -> Symbol:
    """An input as (1, heads, tokens, size): that shape itself, or tokens of all heads in a row."""
    value = conversion.symbol(place)
    if len(value.shape) == 3:
        _, tokens, width = conversion.with_samples(value, 3).shape
        heads = int(conversion.attribute(count, 0))
        if not heads or width % heads:
            conversion.refuse(f"has no '{count}' by which {width} entries are divided")
        split = conversion.reshaped(value, (1, tokens, heads, width // heads))
        return conversion.call(torch.permute, split, (0, 2, 1, 3))
    return conversion.with_samples(value, 4)


def _mask(conversion: Conversion, scores: Symbol) -> np.ndarray | None:
    """What is added to all scores, as (1, heads or 1, queries, keys): 0 or MASKED, or a constant bias."""
    queries, keys = scores.shape[-2:]
    ahead = np.arange(keys) - np.arange(queries)[:, None]
    seen = np.ones((queries, keys), dtype=bool)
    if conversion.attribute("is_causal", 0):
        seen &= ahead <= 0
    for name, way in (("left_window_size", -ahead), ("right_window_size", ahead)):
        if (size := int(conversion.attribute(name, -1))) >= 0:
            seen &= way <= size
    mask = np.where(seen, 0.0, MASKED)
    if conversion.input(3) is not None:
        given = conversion.fixed(3)
        if given.shape[-1] != keys:
            conversion.refuse(f"has a mask of shape {given.shape} for {keys} keys")
        bias = np.where(given, 0.0, MASKED) if given.dtype == bool else given.astype(np.float64)
        mask = mask + bias
    mask = mask.clip(min=MASKED).reshape(*[1] * (4 - mask.ndim), *mask.shape)
    if (mask.max(-1) <= MASKED / 2).any():
        conversion.refuse("masks all keys of a query, which is not understood")
    return mask if mask.any() else None


@operator("Attention")
def attention(conversion: Conversion) -> Known:
    """softmax(Q K^T scale + mask) V by heads; several heads of queries may share one of keys and values."""
    for place, what in ((4, "past keys"), (5, "past values"), (6, "numbers of keys")):
        if conversion.input(place) is not None:
            conversion.refuse(f"with {what} is not understood: export the network without a cache")
    flat = len(conversion.symbol().shape) == 3
    query = _heads(conversion, 0, "q_num_heads")
    key, value = (_heads(conversion, place, "kv_num_heads") for place in (1, 2))
    shared = query.shape[1] // key.shape[1]
    if shared * key.shape[1] != query.shape[1] or key.shape[1] != value.shape[1]:
        conversion.refuse(f"has {query.shape[1]} heads of queries on {key.shape[1]} of keys")
    if shared > 1:
        places = np.repeat(np.arange(key.shape[1]), shared)
        key, value = (picked(conversion, part, 1, places) for part in (key, value))
    scale = float(conversion.attribute("scale", 1 / math.sqrt(query.shape[-1])))
    turned = conversion.call(torch.transpose, key, -1, -2)
    scores = conversion.call(python.mul, conversion.call(torch.matmul, query, turned), scale)
    if (cap := float(conversion.attribute("softcap", 0.0))) > 0:
        bent = conversion.call(torch.tanh, conversion.call(python.truediv, scores, cap))
        scores = conversion.call(python.mul, bent, cap)
    mask = _mask(conversion, scores)
    scores = scores if mask is None else combine(conversion, "Add", scores, mask)
    mixed = conversion.call(torch.matmul, conversion.call(F.softmax, scores, -1), value)
    if not flat:
        return mixed
    moved = conversion.call(torch.permute, mixed, (0, 2, 1, 3))
    return conversion.reshaped(moved, (1, moved.shape[1], math.prod(moved.shape[2:])))


def _angles(conversion: Conversion, place: int, tokens: int) -> np.ndarray:
    """The cosines or sines of each token, (tokens, pairs)."""
    table = conversion.fixed(place)
    if conversion.input(3) is not None:
        return np.asarray(table[conversion.fixed(3).reshape(-1)])
    if table.ndim != 3 or table.shape[:2] != (1, tokens):
        conversion.refuse(f"has angles of shape {table.shape} for {tokens} tokens")
    return np.asarray(table[0])


@operator("RotaryEmbedding")
def rotation(conversion: Conversion) -> Known:
    """Pairs of entries turned by each token's constant angles: z cos + P z sin, P a signed permutation."""
    value = conversion.symbol()
    flat = len(value.shape) == 3
    if flat:
        _, tokens, width = conversion.with_samples(value, 3).shape
        heads = int(conversion.attribute("num_heads", 0))
        if not heads or width % heads:
            conversion.refuse(f"has no 'num_heads' by which {width} entries are divided")
        split = conversion.reshaped(value, (1, tokens, heads, width // heads))
    else:
        split = conversion.with_samples(value, 4)
        tokens = value.shape[2]
    size = split.shape[-1]
    pairs = (int(conversion.attribute("rotary_embedding_dim", 0)) or size) // 2
    if conversion.attribute("interleaved", 0):
        first, second = np.arange(0, 2 * pairs, 2), np.arange(1, 2 * pairs, 2)
    else:
        first, second = np.arange(pairs), np.arange(pairs, 2 * pairs)
    turn, factors = np.zeros((size, size)), [np.ones((tokens, size)), np.zeros((tokens, size))]
    turn[first, second], turn[second, first] = -1.0, 1.0
    for place, factor in enumerate(factors, 1):
        factor[:, first] = factor[:, second] = _angles(conversion, place, tokens)
    cosines, sines = (part[None, :, None] if flat else part[None, None] for part in factors)
    turned = along(conversion, split, split.example.dim() - 1, turn)
    still = combine(conversion, "Mul", split, cosines)
    result = combine(conversion, "Add", still, combine(conversion, "Mul", turned, sines))
    return conversion.reshaped(result, value.shape)


@operator("SwiGLU")
def gated_unit(conversion: Conversion) -> Known:
    """a sigmoid(alpha a) b."""
    first, alpha = conversion.symbol(), float(conversion.attribute("alpha", 1.0))
    scaled = first if alpha == 1 else conversion.call(python.mul, first, alpha)
    swish = conversion.call(python.mul, first, conversion.call(torch.sigmoid, scaled))
    return combine(conversion, "Mul", swish, conversion.input(1))
