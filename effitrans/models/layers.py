"""One layer of the base Transformer: self-attention, optional cross-attention, feed-forward network.

Shapes: B batch, L length, C hidden size.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from effitrans.models.attention import EffitransAttention
from effitrans.models.cache import takes_cache
from effitrans.models.configuration import EffitransConfig

ACTIVATION_MODULES: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "swiglu": nn.SiLU}


def make_norm(config: EffitransConfig) -> nn.LayerNorm | nn.RMSNorm:
    """The normalisation that the config names."""
    norm = nn.LayerNorm if config.norm_type == "layer_norm" else nn.RMSNorm
    return norm(config.hidden_size, eps=config.norm_eps)


class EffitransMLP(nn.Module):
    """down(act(up(x))), or gated (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: EffitransConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate_proj = (
            nn.Linear(config.hidden_size, config.intermediate_size) if config.hidden_act == "swiglu" else None
        )
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACTIVATION_MODULES[config.hidden_act]()

    def forward(self, hidden_states: Tensor) -> Tensor:
        up = self.up_proj(hidden_states)
        inner = self.act_fn(up) if self.gate_proj is None else self.act_fn(self.gate_proj(hidden_states)) * up
        return self.down_proj(inner)


class EffitransLayer(GradientCheckpointingLayer):
    """A layer of an encoder or a decoder, pre- or post-norm."""

    def __init__(self, config: EffitransConfig, layer_idx: int, *, is_causal: bool, has_cross: bool) -> None:
        super().__init__()
        self.is_pre_norm = config.norm == "pre"
        self.self_attn_norm = make_norm(config)
        self.self_attn = EffitransAttention(config, layer_idx, is_causal=is_causal)
        self.has_cross = has_cross
        if has_cross:
            self.cross_attn_norm = make_norm(config)
            self.cross_attn = EffitransAttention(config, layer_idx, is_causal=False, is_cross=True)
        self.mlp_norm = make_norm(config)
        self.mlp = EffitransMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    @takes_cache
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[B, L, C] -> [B, L, C]. The arguments are those of `EffitransAttention`."""
        hidden_states = self._residual(
            hidden_states,
            self.self_attn_norm,
            lambda x: self.self_attn(
                x,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                **kwargs,
            )[0],
        )
        if self.has_cross:
            hidden_states = self._residual(
                hidden_states,
                self.cross_attn_norm,
                lambda x: self.cross_attn(
                    x,
                    attention_mask=encoder_attention_mask,
                    key_value_states=encoder_hidden_states,
                    past_key_values=past_key_values,
                    **kwargs,
                )[0],
            )
        return self._residual(hidden_states, self.mlp_norm, self.mlp)

    def _residual(self, hidden_states: Tensor, norm: nn.Module, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.is_pre_norm:
            return hidden_states + self.dropout(sublayer(norm(hidden_states)))
        return norm(hidden_states + self.dropout(sublayer(hidden_states)))
