"""GPT-2: Conv1D modules (weights stored [in, out]) and one fused projection for query, key and value."""

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

_ATTRIBUTES = {"num_heads": "heads", "split_size": "query_width"}


def describe(model: PreTrainedModel) -> Architecture:
    """Layers are `h`; a model built with `add_cross_attention` holds a cross-attention in each."""
    prefix, base = base_of(model)
    stack = Stack(
        name="decoder",
        path=f"{prefix}h",
        modules=base.h,
        describe=_layer,
        counters=((model.config, "num_hidden_layers"),),
        sizes={**SIZES, "ffn": ("n_inner",)},
    )
    return Architecture(model, (stack,))


def _layer(path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    sites = [_attention(f"{path}.attn", layer.attn, layer.ln_1)]
    if hasattr(layer, "crossattention"):
        sites.append(_attention(f"{path}.crossattention", layer.crossattention, layer.ln_cross_attn, is_cross=True))
    return present(*sites), FeedForwardSite(
        path=f"{path}.mlp", module=layer.mlp, inputs=(layer.mlp.c_fc,), output=layer.mlp.c_proj, norm=layer.ln_2
    )


def _attention(path: str, attention: Any, norm: Any, is_cross: bool = False) -> AttentionSite | None:
    if isinstance(attention, AbsentAttention):
        return None
    fused = attention.c_attn
    return AttentionSite(
        path=path,
        module=attention,
        query=Projection(attention.q_attn) if is_cross else Projection(fused, 0, 3),
        key=Projection(fused, 0, 2) if is_cross else Projection(fused, 1, 3),
        value=Projection(fused, 1, 2) if is_cross else Projection(fused, 2, 3),
        output=attention.c_proj,
        head_dim=attention.head_dim,
        attributes=_ATTRIBUTES,
        is_cross=is_cross,
        norm=norm,
    )
