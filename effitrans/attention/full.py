"""Exact softmax attention: the baseline of every comparison.

    O = softmax(Q K^T * scale + bias) V          (Vaswani et al., "Attention is all you need", 2017, eq. 1)

runs on PyTorch's `scaled_dot_product_attention`. Time O(L S); memory O(S) without a mask, O(L S) for the mask
where there is padding or a bias. Scores that are capped, and sinks, take the dense form, O(H L S) memory,
because SDPA has neither.

`scaled_dot_product` is also what the sparse operators run on their blocks.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from effitrans.attention import reference
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import FEATURES, AttentionOperator, OperatorConfig, Site, State


class Full(OperatorConfig):
    """Exact softmax attention.

    >>> Full().name
    'full'
    """

    name: ClassVar[str] = "full"

    def build(self, site: Site) -> "FullAttention":
        return FullAttention(self, site)


class FullAttention(AttentionOperator):
    """Exact softmax attention; honours everything."""

    honours = frozenset(FEATURES)

    def attend(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask: AttentionMask,
        *,
        scale: float,
        dropout: float = 0.0,
        state: State | None = None,
        **extras: Any,
    ) -> Tensor:
        return full_attention(query_BHLD, key_BGSD, value_BGSD, mask, scale=scale, dropout=dropout, **extras)

    def reference(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask: AttentionMask,
        *,
        scale: float,
        **extras: Any,
    ) -> Tensor:
        return reference.softmax_attention(query_BHLD, key_BGSD, value_BGSD, mask.dense(), scale=scale, **extras)


def full_attention(
    query_BHLD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    mask: AttentionMask,
    *,
    scale: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Exact attention under a mask; also what layers without an operator run."""
    if softcap is not None or s_aux is not None:
        return reference.softmax_attention(
            query_BHLD,
            key_BGSD,
            value_BGSD,
            mask.dense(),
            scale=scale,
            position_bias=position_bias,
            softcap=softcap,
            s_aux=s_aux,
            dropout=dropout,
        )
    settings: dict[str, Any] = {"scale": scale, "dropout": dropout, "position_bias": position_bias}
    if mask.is_plain_causal and position_bias is None and mask.q_length > 1:
        return scaled_dot_product(query_BHLD, key_BGSD, value_BGSD, None, is_causal=True, **settings)
    return scaled_dot_product(query_BHLD, key_BGSD, value_BGSD, mask.dense(), **settings)


def scaled_dot_product(
    query_BHLD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    allowed: Tensor | None,
    *,
    scale: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """SDPA with grouped queries, a boolean mask and a bias; a query that may see no key gives zeros.

    Args:
        query_BHLD, key_BGSD, value_BGSD: heads; G divides H.
        allowed: bool, broadcast to [B, H, L, S]; None: all.
        scale: factor on the scores.
        dropout: probability of dropping an attention weight.
        position_bias: added to the scores, broadcast to [B, H, L, S].
        is_causal: the square causal mask, instead of `allowed`.
    """
    num_heads, length = query_BHLD.shape[1], query_BHLD.shape[2]
    group = num_heads // key_BGSD.shape[1]
    attn_mask = allowed
    if position_bias is not None:
        attn_mask = position_bias if allowed is None else position_bias.masked_fill(~allowed, -torch.inf)
        attn_mask = attn_mask.to(query_BHLD.dtype)
    packed = group > 1 and length == 1 and attn_mask is not None and attn_mask.shape[1] == 1
    if packed:
        # one query: the heads of a group become the rows of one product, so keys are read once
        query_BHLD = query_BHLD.reshape(query_BHLD.shape[0], num_heads // group, group, query_BHLD.shape[3])
    elif group > 1 and attn_mask is not None:
        key_BGSD, value_BGSD = (reference.repeat_heads(tensor, num_heads) for tensor in (key_BGSD, value_BGSD))
    # not `enable_gqa=group > 1`: under torch.compile a comparison of shapes is symbolic, which SDPA does not take
    grouped = {"enable_gqa": True} if group > 1 and attn_mask is None else {}
    out = scaled_dot_product_attention(
        query_BHLD,
        key_BGSD,
        value_BGSD,
        attn_mask=attn_mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
        **grouped,
    )
    return out.reshape(out.shape[0], num_heads, length, out.shape[-1]) if packed else out
