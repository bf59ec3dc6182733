"""Sublayers: the self-attention or the FFN of a layer, taken out as a whole; its output is zero from then on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from effitrans.architectures import Architecture, AttentionSite, Layer
from effitrans.architectures.absent import Zero
from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.layers import Kept
from effitrans.pruning.sites import PruningSite, whole_site
from effitrans.pruning.units.whole import Position, Whole, WholeUnit


class AttentionSettings(Config):
    """What `Pruning` says of self-attention blocks."""

    keep_attention_layers: Kept | None = None
    """Layers that keep their self-attention: how many in each stack (the most important by `method` of the layers that
    stay), or which, counted from 0 in the model as it is. The other layers lose the whole block. None: all."""


class AttentionLayers(WholeUnit):
    """Self-attention blocks."""

    setting = "keep_attention_layers"
    help = "Number of layers that keep their self-attention."
    settings = AttentionSettings
    plural = "layers with self-attention"

    def sites(self, layers: Sequence[Layer], config: Any = None) -> list[PruningSite]:
        blocks = [block for layer in layers if (block := self_attention(layer))]
        return [
            whole_site(b.path, "attention", [b.query.module, b.key.module, b.value.module], [b.output]) for b in blocks
        ]

    def without(self, layer: Layer) -> Layer:
        return replace(layer, attention=tuple(site for site in layer.attention if site.is_cross))

    def check(self, architecture: Architecture, whole: Whole) -> None:
        for stack in architecture.stacks:
            layers = [layer for layer in architecture.layers if layer.stack == stack.name]
            needed = next((site.needed for layer in layers for site in layer.attention if site.needed), None)
            # The first layer that stays takes over what the first one holds for its whole stack.
            heir = next(layer for layer in whole.left(architecture) if layer.stack == stack.name)
            if needed and (stack.name, heir.index) in whole.lost[self]:
                raise UsageError(
                    f"the self-attention of {heir.path} cannot be removed as a whole: {needed}. "
                    "Remove that of another layer, or the whole layer"
                )

    def remove(self, architecture: Architecture, positions: Sequence[Position]) -> None:
        for layer in architecture.layers:
            block = self_attention(layer)
            if (layer.stack, layer.index) in positions and block is not None:
                block.remove(architecture.model)

    def summary(self, architecture: Architecture, positions: Sequence[Position]) -> dict[str, Any]:
        return {"attention_removed": [f"{stack}.{index}" for stack, index in positions]}


class FFNSettings(Config):
    """What `Pruning` says of whole FFNs."""

    keep_ffn_layers: Kept | None = None
    """Layers that keep their FFN, likewise. None: all."""


class FFNLayers(WholeUnit):
    """Feed-forward networks."""

    setting = "keep_ffn_layers"
    help = "Number of layers that keep their FFN."
    settings = FFNSettings
    plural = "layers with an FFN"

    def sites(self, layers: Sequence[Layer], config: Any = None) -> list[PruningSite]:
        networks = [layer.feed_forward for layer in layers if layer.feed_forward.width]
        return [whole_site(n.path, "ffn", n.inputs, [n.output]) for n in networks]

    def without(self, layer: Layer) -> Layer:
        gone = replace(layer.feed_forward, inputs=(Zero(),) * len(layer.feed_forward.inputs), output=Zero())
        return replace(layer, feed_forward=gone)

    def remove(self, architecture: Architecture, positions: Sequence[Position]) -> None:
        for layer in architecture.layers:
            if (layer.stack, layer.index) in positions and layer.feed_forward.width:
                layer.feed_forward.remove(architecture.model)

    def summary(self, architecture: Architecture, positions: Sequence[Position]) -> dict[str, Any]:
        return {"ffn_removed": [f"{stack}.{index}" for stack, index in positions]}


def self_attention(layer: Layer) -> AttentionSite | None:
    """The self-attention of a layer; None where it was removed."""
    return next((site for site in layer.attention if not site.is_cross), None)
