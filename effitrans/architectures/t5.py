"""T5: relative position bias computed once a stack, plain or gated FFN.

The first self-attention of a stack holds the bias table, one column a head, and hands the bias to all layers
after it: head h is one unit over the whole stack, and the table loses its column. Cross-attention is handed a
bias of zeros with one entry a head in the same way, so its heads go together as well. A model with several
layers therefore has one set of heads for each stack and kind of attention.
"""

from functools import partial
from typing import Any

from transformers import PreTrainedModel

from effitrans.architectures.absent import AbsentAttention
from effitrans.architectures.structure import (
    Architecture,
    AttentionSite,
    FeedForwardSite,
    HeadTensor,
    Projection,
    Stack,
    base_of,
    present,
)
from effitrans.errors import UsageError


def describe(model: PreTrainedModel) -> Architecture:
    """Layers are `encoder.block` and `decoder.block`; each stack holds its own copy of the config."""
    prefix, base = base_of(model)
    stacks = []
    for name, counter in (("encoder", "num_layers"), ("decoder", "num_decoder_layers")):
        stack = getattr(base, name, None)
        if stack is not None:
            stacks.append(
                Stack(
                    name=name,
                    path=f"{prefix}{name}.block",
                    modules=stack.block,
                    describe=partial(_layer, name),
                    counters=((model.config, counter), (base.config, counter), (stack.config, "num_layers")),
                    sizes={"heads": ("num_heads",), "head_dim": ("d_kv",), "ffn": ("d_ff",)},
                    hand_over=_move_bias_table,
                )
            )
    return Architecture(model, tuple(stacks))


def _layer(stack: str, path: str, layer: Any) -> tuple[tuple[AttentionSite, ...], FeedForwardSite]:
    parts = layer.layer
    sites = [_attention(stack, f"{path}.layer.0.SelfAttention", parts[0].SelfAttention, parts[0].layer_norm)]
    if len(parts) == 3:
        cross = f"{path}.layer.1.EncDecAttention"
        sites.append(_attention(stack, cross, parts[1].EncDecAttention, parts[1].layer_norm, is_cross=True))
    feed_forward = parts[-1].DenseReluDense
    gated = hasattr(feed_forward, "wi_0")
    return present(*sites), FeedForwardSite(
        path=f"{path}.layer.{len(parts) - 1}.DenseReluDense",
        module=feed_forward,
        inputs=(feed_forward.wi_1, feed_forward.wi_0) if gated else (feed_forward.wi,),
        output=feed_forward.wo,
        norm=parts[-1].layer_norm,
    )


def _attention(stack: str, path: str, attention: Any, norm: Any, is_cross: bool = False) -> AttentionSite | None:
    if isinstance(attention, AbsentAttention):
        return None
    table = getattr(attention, "relative_attention_bias", None)
    return AttentionSite(
        path=path,
        module=attention,
        query=Projection(attention.q),
        key=Projection(attention.k),
        value=Projection(attention.v),
        output=attention.o,
        head_dim=attention.key_value_proj_dim,
        attributes={"n_heads": "heads", "inner_dim": "query_width"},
        head_tensors=() if table is None else (HeadTensor(table, "weight", 1),),
        is_cross=is_cross,
        shares_heads=f"{stack} {'cross' if is_cross else 'self'}-attention",
        norm=norm,
        needed=None if table is None else "it computes the position bias of every layer of its stack",
        returns_bias=True,
    )


def _move_bias_table(old_first: Any, new_first: Any) -> None:
    old, new = old_first.layer[0].SelfAttention, new_first.layer[0].SelfAttention
    if isinstance(new, AbsentAttention):
        raise UsageError(
            "the first layer that stays has no self-attention, which would hold the position bias of its stack: "
            "keep the first layer, or another one with self-attention in front"
        )
    new.relative_attention_bias = old.relative_attention_bias
    new.has_relative_attention_bias = True
