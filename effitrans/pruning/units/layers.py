"""Whole layers, with their norms."""

from collections.abc import Sequence
from typing import Any, Literal

from effitrans.architectures import Architecture, Layer, evenly_chosen
from effitrans.config import Config
from effitrans.layers import Kept
from effitrans.pruning.sites import PruningSite, whole_site
from effitrans.pruning.units.base import Scorer
from effitrans.pruning.units.whole import Position, Whole, WholeUnit


class LayerSettings(Config):
    """What `Pruning` says of layers."""

    keep_layers: Kept | None = None
    """Layers to keep: how many in each stack (a number), or which, counted from 0 in each stack ("0-3,5", a list).
    None: all."""
    layer_choice: Literal["even", "importance"] = "even"
    """How a number of layers is chosen: evenly spaced from first to last, or the most important by `method`."""

    def idle(self) -> dict[str, str]:
        return {} if isinstance(self.keep_layers, int) else {"layer_choice": "without keep_layers as a number"}


class Layers(WholeUnit):
    """Layers."""

    setting = "keep_layers"
    help = "Number of layers kept."
    settings = LayerSettings
    plural = "layers"

    def sites(self, layers: Sequence[Layer], config: Any = None) -> list[PruningSite]:
        return [_site(layer) for layer in layers]

    def uses_scores(self, config: Any) -> bool:
        return super().uses_scores(config) and config.layer_choice == "importance"

    def kept(
        self, architecture: Architecture, layers: Sequence[Layer], config: Any, score: Scorer
    ) -> dict[str, list[int]]:
        if not isinstance(config.keep_layers, int) or config.layer_choice == "importance":
            return super().kept(architecture, layers, config, score)
        depths = _depths(architecture)
        return {stack: evenly_chosen(depth, min(config.keep_layers, depth)) for stack, depth in depths.items()}

    def without(self, layer: Layer) -> None:
        return None

    def check(self, architecture: Architecture, whole: Whole) -> None:
        architecture.check_layers(_kept(architecture, whole.lost[self]))

    def remove(self, architecture: Architecture, positions: Sequence[Position]) -> None:
        architecture.drop_layers(_kept(architecture, positions))

    def summary(self, architecture: Architecture, positions: Sequence[Position]) -> dict[str, Any]:
        return {"layers_before": _depths(architecture), "layers_kept": _kept(architecture, positions)}


def _site(layer: Layer) -> PruningSite:
    outs = [p.module for site in layer.attention for p in (site.query, site.key, site.value)]
    ins = [site.output for site in layer.attention]
    if layer.feed_forward.width:
        outs += layer.feed_forward.inputs
        ins.append(layer.feed_forward.output)
    return whole_site(layer.path, "layer", outs, ins)


def _depths(architecture: Architecture) -> dict[str, int]:
    return {stack.name: len(stack.modules) for stack in architecture.stacks}


def _kept(architecture: Architecture, lost: Sequence[Position]) -> dict[str, list[int]]:
    """Stack -> indices of the layers that stay."""
    return {
        stack: [index for index in range(depth) if (stack, index) not in lost]
        for stack, depth in _depths(architecture).items()
    }
