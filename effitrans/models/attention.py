"""Multi-head attention with grouped queries, through the attention interface of transformers.

Vaswani et al. 2017 (equation 1); grouped queries: Ainslie et al. 2023. The module reads its own `num_heads`,
`num_key_value_heads` and `head_dim`, never the config, so that heads can be removed from a single layer.

Shapes: B batch, H query heads, G key/value heads, L query length, S key length, D head dimension, C hidden size.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from effitrans.errors import UsageError
from effitrans.models.cache import past_length, self_attention_cache
from effitrans.models.configuration import EffitransConfig
from effitrans.models.positions import AlibiBias, RelativeBias, rotate


def eager_attention_forward(
    module: nn.Module,
    query_BHLD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(scaling * Q K^T + position bias + mask) V -> ([B, L, H, D], weights [B, H, L, S]).

    Scores are summed in float32: in float16 a bias on top of the mask's lowest number would overflow.
    """
    groups = query_BHLD.shape[1] // key_BGSD.shape[1]
    key_BHSD = key_BGSD.repeat_interleave(groups, dim=1)
    value_BHSD = value_BGSD.repeat_interleave(groups, dim=1)
    scores_BHLS = query_BHLD @ key_BHSD.transpose(2, 3) * scaling
    scores_BHLS = scores_BHLS.to(torch.promote_types(query_BHLD.dtype, torch.float32))
    if position_bias is not None:
        scores_BHLS = scores_BHLS + position_bias
    if attention_mask is not None:
        scores_BHLS = scores_BHLS + attention_mask
    weights_BHLS = scores_BHLS.softmax(dim=-1).to(query_BHLD.dtype)
    weights_BHLS = nn.functional.dropout(weights_BHLS, p=dropout, training=module.training)
    return (weights_BHLS @ value_BHSD).transpose(1, 2).contiguous(), weights_BHLS


def add_to_mask(bias_1HLS: Tensor, mask: Tensor | None, *, is_causal: bool) -> Tensor:
    """A bias on the scores and a mask (boolean, additive, or None: all, or all before it) as one additive mask."""
    if mask is None and is_causal and bias_1HLS.shape[2] > 1:
        mask = torch.ones(bias_1HLS.shape[2:], dtype=torch.bool, device=bias_1HLS.device).tril()
    if mask is None:
        return bias_1HLS
    if mask.dtype == torch.bool:
        return bias_1HLS.where(mask, torch.finfo(bias_1HLS.dtype).min)
    return bias_1HLS + mask


def _implementations_with_bias() -> frozenset[str]:
    """Attention implementations that add `position_bias`. The others take any keyword and drop it in silence."""
    # "effitrans" dispatches to the operators of this library, which refuse what they cannot honour.
    named = {"eager", "sdpa", "effitrans"}
    if "position_bias" in inspect.signature(ALL_ATTENTION_FUNCTIONS["flex_attention"]).parameters:
        named.add("flex_attention")
    return frozenset(named)


IMPLEMENTATIONS_WITH_BIAS = _implementations_with_bias()


class EffitransAttention(nn.Module):
    """Self-attention, or attention to an encoder's output (`is_cross`)."""

    def __init__(self, config: EffitransConfig, layer_idx: int, *, is_causal: bool, is_cross: bool = False) -> None:
        super().__init__()
        assert config.num_key_value_heads is not None
        assert config.head_dim is not None
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.is_cross = is_cross
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size)
        self.position_bias: AlibiBias | RelativeBias | None = None
        if config.position == "alibi" and not is_cross:
            self.position_bias = AlibiBias(self.num_heads)
        elif config.position == "relative" and not is_cross:
            self.position_bias = RelativeBias(
                self.num_heads,
                config.relative_attention_num_buckets,
                config.relative_attention_max_distance,
                bidirectional=not is_causal,
            )

    @property
    def num_key_value_groups(self) -> int:
        """Query heads to each key/value head."""
        return self.num_heads // self.num_key_value_heads

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: [B, L, C].
            attention_mask: as the mask function of the attention implementation made it.
            key_value_states: [B, S, C] of the encoder; needed by cross-attention, and only by it.
            position_embeddings: cosine and sine of the rotary angles.
            past_key_values: the cache; updated in place.

        Returns:
            [B, L, C], and the attention weights [B, H, L, S] if the implementation gives them.
        """
        batch, length, _ = hidden_states.shape
        query_BHLD = self._heads(self.q_proj(hidden_states), self.num_heads)
        past: int | Tensor = 0
        if self.is_cross:
            assert key_value_states is not None
            key_BGSD, value_BGSD = self._cross_keys_and_values(key_value_states, past_key_values)
        else:
            key_BGSD = self._heads(self.k_proj(hidden_states), self.num_key_value_heads)
            value_BGSD = self._heads(self.v_proj(hidden_states), self.num_key_value_heads)
            if position_embeddings is not None:
                query_BHLD = rotate(query_BHLD, *position_embeddings)
                key_BGSD = rotate(key_BGSD, *position_embeddings)
            if past_key_values is not None:
                cache = self_attention_cache(past_key_values)
                past = past_length(cache, self.layer_idx)
                key_BGSD, value_BGSD = cache.update(key_BGSD, value_BGSD, self.layer_idx)

        implementation = self.config._attn_implementation or "eager"
        if self.position_bias is not None:
            bias_1HLS = self._bias(implementation, query_BHLD, key_BGSD.shape[2], past)
            if implementation == "sdpa":  # transformers' function takes a bias from 5.14 on, a mask always
                attention_mask = add_to_mask(bias_1HLS, attention_mask, is_causal=self.is_causal)
            else:
                kwargs["position_bias"] = bias_1HLS
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output_BLHD, weights_BHLS = attend(
            self,
            query_BHLD,
            key_BGSD,
            value_BGSD,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output_BLHD.reshape(batch, length, self.num_heads * self.head_dim)), weights_BHLS

    def _heads(self, projected: Tensor, heads: int) -> Tensor:
        """[B, L, heads * D] -> [B, heads, L, D]."""
        return projected.view(*projected.shape[:2], heads, self.head_dim).transpose(1, 2)

    def _cross_keys_and_values(self, states: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Computed for the first token only: the encoder's output does not change afterwards."""
        if not isinstance(cache, EncoderDecoderCache):
            cache = None
        elif cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values  # type: ignore[return-value]
        key_BGSD = self._heads(self.k_proj(states), self.num_key_value_heads)
        value_BGSD = self._heads(self.v_proj(states), self.num_key_value_heads)
        if cache is not None:
            key_BGSD, value_BGSD = cache.cross_attention_cache.update(key_BGSD, value_BGSD, self.layer_idx)
            cache.is_updated[self.layer_idx] = True
        return key_BGSD, value_BGSD

    def _bias(self, implementation: str, query_BHLD: Tensor, key_length: int, past: int | Tensor) -> Tensor:
        assert self.position_bias is not None
        if implementation not in IMPLEMENTATIONS_WITH_BIAS:
            raise UsageError(
                f"attention implementation {implementation!r} cannot add the bias of {self.config.position} positions: "
                f"use one of {', '.join(sorted(IMPLEMENTATIONS_WITH_BIAS))} (model.set_attn_implementation), or a "
                "model with rotary, sinusoidal or learned positions"
            )
        return self.position_bias(query_BHLD.shape[2], key_length, past).to(query_BHLD.dtype)
