"""Attention as plain products and a softmax, which vmap can batch over lanes.

Torch's fused CPU kernel has no batching rule and would run lane by lane; its dropout draws in place.

Shape letters: N = sequences, H = heads, L = queries, S = keys, E = width of a head.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tuner.functions import autocasting, dropout
from tuner.functions.rebinding import rebind


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` for lanes.

    A query that may look at no key gets zeros, as in torch.

    Args:
        query: (..., H, L, E).
        key: (..., H, S, E); fewer heads with `enable_gqa`.
        value: (..., H, S, Ev).
        attn_mask: broadcasts to (..., L, S); bool (True takes part) or added to the scores.
        dropout_p: probability of dropping an attention weight, in [0, 1]; always applied, as in torch.
        is_causal: a query sees the keys up to its own position.
        scale: of the scores; 1 / sqrt(E) if None.
        enable_gqa: several query heads share one key head.

    Returns:
        (..., H, L, Ev).

    Raises:
        RuntimeError: if a mask is given together with `is_causal`.

    Source:
        Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, equation 1.
    """
    if is_causal and attn_mask is not None:
        raise RuntimeError("scaled_dot_product_attention: give attn_mask or is_causal=True, not both")
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    if is_causal:
        allowed = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        attn_mask = allowed.tril()
    scores = query @ key.mT * (1 / sqrt(query.shape[-1]) if scale is None else scale)
    weights = scores.softmax(-1) if attn_mask is None else _masked_softmax(scores, attn_mask)
    return dropout.dropout(weights, dropout_p, True) @ value


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis; a row without any key is zero, and so is its gradient."""
    scores = scores.masked_fill(mask.logical_not(), -inf) if mask.dtype == torch.bool else scores + mask
    empty = (scores == -inf).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


_linear = autocasting.REPLACEMENTS[functional.linear]
_packed = rebind(functional._in_projection_packed, linear=_linear)  # type: ignore[attr-defined]


def in_projection_packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None = None
) -> list[Tensor]:
    """The projections in front of attention, ``torch.nn.functional._in_projection_packed``, for lanes.

    Args:
        query: (T, B, E).
        key: the same.
        value: the same.
        weight: (3 E, E).
        bias: (3 E,).

    Returns:
        Three tensors (T, B, E). Of self-attention they are cut from one product: selecting them would let backward
        fill a whole tensor with zeros for each.
    """
    if query is key and key is value:
        return [each.contiguous() for each in _linear(query, weight, bias).chunk(3, dim=-1)]
    found: list[Tensor] = _packed(query, key, value, weight, bias)
    return found


REPLACEMENTS: dict[Any, Any] = {
    functional.scaled_dot_product_attention: scaled_dot_product_attention,
    functional.multi_head_attention_forward: rebind(
        functional.multi_head_attention_forward,
        scaled_dot_product_attention=scaled_dot_product_attention,
        dropout=dropout.REPLACEMENTS[functional.dropout],
        linear=_linear,
        _in_projection_packed=in_projection_packed,
    ),
}
"""What replaces what; see `tuner.functions.substitution`."""
