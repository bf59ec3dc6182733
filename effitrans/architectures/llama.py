"""Llama, Qwen2 and Mistral: grouped-query attention with rotary positions, gated FFN, pre-norm."""

from typing import Any

from transformers import PreTrainedModel

from effitrans.architectures.absent import AbsentAttention
from effitrans.architectures.structure import (
    SIZES,
    Architecture,
    AttentionSite,
    FeedForwardSite,
    Projection,
    Stack,
    base_of,
    present,
)


def describe(model: PreTrainedModel) -> Architecture:
    """Layers are `layers`. Qwen2 names the attention type of each layer in its config, which is shortened too."""
    prefix, base = base_of(model)
    stack = Stack(
        name="decoder",
        path=f"{prefix}layers",
        modules=base.layers,
        describe=_layer,
        counters=((model.config, "num_hidden_layers"),),
        sizes={**SIZES, "key_value_heads": ("num_key_value_heads",)},
        per_layer=((model.config, "layer_types"),),
    )
    return Architecture(model, (stack,))


def _layer(path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    return present(_attention(f"{path}.self_attn", layer.self_attn, layer.input_layernorm)), FeedForwardSite(
        path=f"{path}.mlp",
        module=layer.mlp,
        inputs=(layer.mlp.up_proj, layer.mlp.gate_proj),
        output=layer.mlp.down_proj,
        attributes=("intermediate_size",),
        norm=layer.post_attention_layernorm,
    )


def _attention(path: str, attention: Any, norm: Any) -> AttentionSite | None:
    if isinstance(attention, AbsentAttention):
        return None
    return AttentionSite(
        path=path,
        module=attention,
        query=Projection(attention.q_proj),
        key=Projection(attention.k_proj),
        value=Projection(attention.v_proj),
        output=attention.o_proj,
        head_dim=attention.head_dim,
        attributes={"num_key_value_groups": "queries_per_group"},
        norm=norm,
    )
