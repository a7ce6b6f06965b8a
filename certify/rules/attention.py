"""Attention: tokens mixed by the softmax of the products of their queries and keys."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from certify.rules.arithmetic import ScaleShift
from certify.rules.linear import Linear
from certify.rules.placement import Exchange
from certify.rules.product import multiplied
from certify.rules.shape import Reshape
from certify.rules.softmax import softmax_along
from certify.rules.table import Call, Made, Plan, Several, Step, rule


class PerRoot(ScaleShift):
    """Values divided by the root of their last dimension's size."""

    def parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values.new_tensor(values.shape[-1] ** -0.5), values.new_zeros(())


def attended(
    plan: Plan, query: int | Made, key: int | Made, value: int | Made, scale: float | None = None
) -> Made:
    """softmax(q k^T scale) v for results (n, ..., t, d); without a scale 1 / sqrt(d).

    Source: Vaswani et al. 2017, 1706.03762, equation 1.
    """
    scaled = plan.add(PerRoot() if scale is None else ScaleShift(scale=lambda: scale), query)
    scores = multiplied(plan, scaled, plan.add(Exchange(-2, -1), key))
    return multiplied(plan, plan.add(softmax_along(-1), scores), value)


@rule(F.scaled_dot_product_attention)
def scaled_dot_product_attention(call: Call) -> list[Step]:
    """Attention of values, without a mask."""
    given = call.bind(
        "query", "key", "value", attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    )
    if given["attn_mask"] is not None or given["is_causal"] or given["enable_gqa"]:
        call.refuse("with a mask or grouped queries is not understood by the certificates")
    if given["dropout_p"]:
        call.refuse("with dropout is random: pass dropout_p=0")
    plan = Plan()
    query, key, value = (call.value(given[name]) for name in ("query", "key", "value"))
    attended(plan, query, key, value, given["scale"])
    return plan.steps


@rule(nn.MultiheadAttention)
def multihead_attention(call: Call) -> Several:
    """Attention between linear layers, heads beside each other; the averaged weights are not understood."""
    module = call.module
    assert isinstance(module, nn.MultiheadAttention)
    given = call.bind(
        "query", "key", "value", key_padding_mask=None, need_weights=True, attn_mask=None,
        average_attn_weights=True, is_causal=False,
    )  # fmt: skip
    if given["key_padding_mask"] is not None or given["attn_mask"] is not None or given["is_causal"]:
        call.refuse("with a mask is not understood by the certificates")
    if not module.batch_first or module.bias_k is not None or module.add_zero_attn:
        call.refuse("is understood with batch_first=True and without further keys only")
    if module.training and module.dropout:
        call.refuse("dropout in train mode is random: call model.eval()")
    sources = [call.value(given[name]) for name in ("query", "key", "value")]

    def part(index: int) -> list[Step]:
        if index not in (0, -2):
            call.refuse("gives its weights to the network, which is not understood: pass need_weights=False")
        return _heads(module, sources)

    return Several(part)


def _heads(module: nn.MultiheadAttention, sources: list[int]) -> list[Step]:
    plan, out = Plan(), module.out_proj
    apart = Reshape(lambda values: values.unflatten(-1, (module.num_heads, -1))), Exchange(1, 2)
    query, key, value = (
        plan.add((_projection(module, i), *apart), source) for i, source in enumerate(sources)
    )
    together = Exchange(1, 2), Reshape(lambda values: values.flatten(2))
    plan.add((*together, Linear(lambda: out.weight, lambda: out.bias)), attended(plan, query, key, value))
    return plan.steps


def _projection(module: nn.MultiheadAttention, place: int) -> Linear:
    """The linear layer of the queries (0), the keys (1) or the values (2)."""
    size = module.embed_dim
    stretch = slice(place * size, (place + 1) * size)

    def weight() -> Tensor:
        if module.in_proj_weight is not None:
            return module.in_proj_weight[stretch]
        separate: Any = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)[place]
        return separate

    def bias() -> Tensor | None:
        return None if module.in_proj_bias is None else module.in_proj_bias[stretch]

    return Linear(weight, bias)
