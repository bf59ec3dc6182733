"""BART: encoder and decoder, post-norm, the FFN directly in the layer."""

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
    """Layers are `encoder.layers` and `decoder.layers`; a causal language model has the decoder only."""
    prefix, base = base_of(model)
    stacks = []
    for name in ("encoder", "decoder"):
        stack = getattr(base, name, None)
        if stack is not None:
            stacks.append(
                Stack(
                    name=name,
                    path=f"{prefix}{name}.layers",
                    modules=stack.layers,
                    describe=_layer,
                    counters=((model.config, f"{name}_layers"), (stack.config, f"{name}_layers")),
                    sizes=_sizes(name, alone=getattr(base, "encoder", None) is None),
                )
            )
    return Architecture(model, tuple(stacks))


def _sizes(stack: str, alone: bool) -> dict[str, tuple[str, ...]]:
    """The generic `num_attention_heads` is another name of the encoder's, and is read of decoders that stand alone."""
    heads = (f"{stack}_attention_heads", *(("num_attention_heads",) if alone else ()))
    return {"heads": heads, "head_dim": ("head_dim",), "ffn": (f"{stack}_ffn_dim",)}


def _layer(path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    sites = [_attention(f"{path}.self_attn", layer.self_attn)]
    if hasattr(layer, "encoder_attn"):
        sites.append(_attention(f"{path}.encoder_attn", layer.encoder_attn, is_cross=True))
    return present(*sites), FeedForwardSite(path=path, module=layer, inputs=(layer.fc1,), output=layer.fc2)


def _attention(path: str, attention: Any, is_cross: bool = False) -> AttentionSite | None:
    if isinstance(attention, AbsentAttention):
        return None
    return AttentionSite(
        path=path,
        module=attention,
        query=Projection(attention.q_proj),
        key=Projection(attention.k_proj),
        value=Projection(attention.v_proj),
        output=attention.out_proj,
        head_dim=attention.head_dim,
        attributes={"num_heads": "heads"},
        is_cross=is_cross,
    )
