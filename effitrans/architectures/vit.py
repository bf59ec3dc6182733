"""ViT: an encoder over image patches, pre-norm, no layer indices."""

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


def describe(model: PreTrainedModel) -> Architecture:
    """Layers are `layers`."""
    prefix, base = base_of(model)
    stack = Stack(
        name="encoder",
        path=f"{prefix}layers",
        modules=base.layers,
        describe=_layer,
        counters=((model.config, "num_hidden_layers"),),
    )
    return Architecture(model, (stack,))


def _layer(path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    return present(_attention(f"{path}.attention", layer.attention, layer.layernorm_before)), FeedForwardSite(
        path=f"{path}.mlp",
        module=layer.mlp,
        inputs=(layer.mlp.fc1,),
        output=layer.mlp.fc2,
        norm=layer.layernorm_after,
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
        attributes={"num_attention_heads": "heads"},
        norm=norm,
    )
