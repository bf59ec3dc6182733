"""DistilBERT: BERT's encoder with other names, and no layer indices."""

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
    """Layers are `transformer.layer`."""
    prefix, base = base_of(model)
    stack = Stack(
        name="encoder",
        path=f"{prefix}transformer.layer",
        modules=base.transformer.layer,
        describe=_layer,
        counters=((model.config, "num_hidden_layers"), (base.transformer, "n_layers")),
        sizes={**SIZES, "ffn": ("hidden_dim",)},
    )
    return Architecture(model, (stack,))


def _layer(path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    return present(_attention(f"{path}.attention", layer.attention)), FeedForwardSite(
        path=f"{path}.ffn", module=layer.ffn, inputs=(layer.ffn.lin1,), output=layer.ffn.lin2
    )


def _attention(path: str, attention: Any) -> AttentionSite | None:
    if isinstance(attention, AbsentAttention):
        return None
    return AttentionSite(
        path=path,
        module=attention,
        query=Projection(attention.q_lin),
        key=Projection(attention.k_lin),
        value=Projection(attention.v_lin),
        output=attention.out_lin,
        head_dim=attention.attention_head_size,
        attributes={"n_heads": "heads"},
    )
