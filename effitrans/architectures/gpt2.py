"""GPT-2: Conv1D modules (weights stored [in, out]) and one fused projection for query, key and value."""

from typing import Any

from transformers import PreTrainedModel

from effitrans.architectures.structure import Architecture, AttentionSite, FeedForwardSite, Projection, Stack, base_of

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
    )
    return Architecture(model, (stack,))


def _layer(path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    attention = layer.attn
    sites = [
        AttentionSite(
            path=f"{path}.attn",
            module=attention,
            query=Projection(attention.c_attn, 0, 3),
            key=Projection(attention.c_attn, 1, 3),
            value=Projection(attention.c_attn, 2, 3),
            output=attention.c_proj,
            head_dim=attention.head_dim,
            attributes=_ATTRIBUTES,
        )
    ]
    if hasattr(layer, "crossattention"):
        cross = layer.crossattention
        sites.append(
            AttentionSite(
                path=f"{path}.crossattention",
                module=cross,
                query=Projection(cross.q_attn),
                key=Projection(cross.c_attn, 0, 2),
                value=Projection(cross.c_attn, 1, 2),
                output=cross.c_proj,
                head_dim=cross.head_dim,
                attributes=_ATTRIBUTES,
                is_cross=True,
            )
        )
    return tuple(sites), FeedForwardSite(
        path=f"{path}.mlp", module=layer.mlp, inputs=(layer.mlp.c_fc,), output=layer.mlp.c_proj
    )
