"""Neurons of the feed-forward networks; those of a gated network go from both of its inputs."""

from collections.abc import Sequence
from typing import Any

from effitrans.architectures import Architecture, FeedForwardSite, Layer
from effitrans.config import Config
from effitrans.pruning.sites import PruningSite, Slice, require_plain, spread
from effitrans.pruning.units.base import Ratio, RatioUnit


class NeuronSettings(Config):
    """What `Pruning` says of neurons."""

    ffn: Ratio = 0.0
    """Fraction of the FFN neurons to remove, 0 to 1."""


class Neurons(RatioUnit):
    """FFN neurons."""

    setting = "ffn"
    help = "Fraction of the FFN neurons removed."
    settings = NeuronSettings
    reads = ("scope", "multiple_of")

    def sites(self, layers: Sequence[Layer], config: Any = None) -> list[PruningSite]:
        return ffn_sites(layers)

    def why_nothing(self, sites: Sequence[PruningSite], config: Any) -> str:
        return (
            f"ffn={config.ffn:g} removes nothing from FFNs of at most {max(s.units for s in sites)} neurons "
            f"when widths are rounded to multiples of {config.multiple_of}: raise the ratio or set multiple_of=1"
        )

    def sizes(self, architecture: Architecture) -> set[int]:
        return {layer.feed_forward.width for layer in architecture.layers}


def ffn_sites(layers: Sequence[Layer]) -> list[PruningSite]:
    """One site for each FFN that is there; its units are the neurons."""
    return [_ffn_site(layer.feed_forward) for layer in layers if layer.feed_forward.width]


def _ffn_site(feed_forward: FeedForwardSite) -> PruningSite:
    require_plain(feed_forward.path, [*feed_forward.inputs, feed_forward.output])
    neurons = spread(feed_forward.width, 1)
    return PruningSite(
        name=feed_forward.path,
        kind="neuron",
        units=feed_forward.width,
        slices=(
            *(Slice(module, "out", neurons) for module in feed_forward.inputs),
            Slice(feed_forward.output, "in", neurons),
        ),
        after=lambda kept: feed_forward.update_attributes(),
    )
