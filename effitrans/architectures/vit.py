"""ViT: an encoder over image patches, pre-norm, no layer indices."""

from typing import Any

from transformers import PreTrainedModel

from effitrans.architectures.structure import Architecture, AttentionSite, FeedForwardSite, Projection, Stack, base_of


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
    attention = layer.attention
    site = AttentionSite(
        path=f"{path}.attention",
        module=attention,
        query=Projection(attention.q_proj),
        key=Projection(attention.k_proj),
        value=Projection(attention.v_proj),
        output=attention.o_proj,
        head_dim=attention.head_dim,
        attributes={"num_attention_heads": "heads"},
    )
    return (site,), FeedForwardSite(path=f"{path}.mlp", module=layer.mlp, inputs=(layer.mlp.fc1,), output=layer.mlp.fc2)
