"""The base Transformer of effitrans: encoder, decoder or both; grouped queries, plain or gated FFN, five kinds of
positions, two of which (ALiBi, relative) keep one entry a head in each attention module.
"""

from typing import Any

from transformers import PreTrainedModel

from effitrans.architectures.absent import AbsentAttention
from effitrans.architectures.structure import (
    SIZES,
    Architecture,
    AttentionSite,
    FeedForwardSite,
    HeadTensor,
    Projection,
    Stack,
    base_of,
    present,
)


def describe(model: PreTrainedModel) -> Architecture:
    """Layers are `encoder.layers` and `decoder.layers`; which there are depends on `config.form`."""
    prefix, base = base_of(model)
    stacks = []
    for name in ("encoder", "decoder"):
        stack = getattr(base, name, None)
        if stack is not None:
            counter = "num_decoder_layers" if stack.has_cross else "num_hidden_layers"
            stacks.append(
                Stack(
                    name=name,
                    path=f"{prefix}{name}.layers",
                    modules=stack.layers,
                    describe=_layer,
                    counters=((model.config, counter), (stack.config, counter)),
                    sizes={**SIZES, "key_value_heads": ("num_key_value_heads",)},
                )
            )
    return Architecture(model, tuple(stacks))


def _layer(path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    sites = [_attention(f"{path}.self_attn", layer.self_attn, layer.self_attn_norm if layer.is_pre_norm else None)]
    if layer.has_cross:
        norm = layer.cross_attn_norm if layer.is_pre_norm else None
        sites.append(_attention(f"{path}.cross_attn", layer.cross_attn, norm))
    gate = layer.mlp.gate_proj
    return present(*sites), FeedForwardSite(
        path=f"{path}.mlp",
        module=layer.mlp,
        inputs=(layer.mlp.up_proj,) if gate is None else (layer.mlp.up_proj, gate),
        output=layer.mlp.down_proj,
        norm=layer.mlp_norm if layer.is_pre_norm else None,
    )


def _attention(path: str, attention: Any, norm: Any) -> AttentionSite | None:
    if isinstance(attention, AbsentAttention):
        return None
    bias = attention.position_bias
    tables: tuple[HeadTensor, ...] = ()
    if hasattr(bias, "slopes"):
        tables = (HeadTensor(bias, "slopes", 0),)
    elif bias is not None:
        tables = (HeadTensor(bias, "weight", 1),)
    return AttentionSite(
        path=path,
        module=attention,
        query=Projection(attention.q_proj),
        key=Projection(attention.k_proj),
        value=Projection(attention.v_proj),
        output=attention.o_proj,
        head_dim=attention.head_dim,
        attributes={"num_heads": "heads", "num_key_value_heads": "key_value_heads"},
        head_tensors=tables,
        is_cross=attention.is_cross,
        norm=norm,
    )
