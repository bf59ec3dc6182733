"""BERT, and the families that keep its module layout (RoBERTa and its descendants)."""

from typing import Any

from transformers import PreTrainedModel

from effitrans.architectures.absent import AbsentAttention
from effitrans.architectures.structure import (
    Architecture,
    AttentionSite,
    FeedForwardSite,
    Projection,
    Stack,
    base_of,
    present,
)

_ATTRIBUTES = {"num_attention_heads": "heads", "all_head_size": "query_width"}


def describe(model: PreTrainedModel) -> Architecture:
    """Layers are `encoder.layer`; an encoder used as a decoder may hold cross-attention in each."""
    prefix, base = base_of(model)
    stack = Stack(
        name="decoder" if model.config.is_decoder else "encoder",
        path=f"{prefix}encoder.layer",
        modules=base.encoder.layer,
        describe=_layer,
        counters=((model.config, "num_hidden_layers"),),
    )
    return Architecture(model, (stack,))


def _layer(path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    sites = [_attention(f"{path}.attention", layer.attention)]
    if hasattr(layer, "crossattention"):
        sites.append(_attention(f"{path}.crossattention", layer.crossattention, is_cross=True))
    return present(*sites), FeedForwardSite(
        path=f"{path}.intermediate",
        module=layer.intermediate,
        inputs=(layer.intermediate.dense,),
        output=layer.output.dense,
    )


def _attention(path: str, block: Any, is_cross: bool = False) -> AttentionSite | None:
    attention = block.self
    if isinstance(attention, AbsentAttention):
        return None
    return AttentionSite(
        path=f"{path}.self",
        module=attention,
        query=Projection(attention.query),
        key=Projection(attention.key),
        value=Projection(attention.value),
        output=block.output.dense,
        head_dim=attention.attention_head_size,
        attributes=_ATTRIBUTES,
        is_cross=is_cross,
    )
