"""Whole layers and sublayers: which of them stay, and taking the others out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from effitrans.architectures import Architecture, Layer, evenly_chosen
from effitrans.errors import UsageError
from effitrans.layers import check_numbers
from effitrans.pruning.config import Pruning
from effitrans.pruning.scores import Scorer
from effitrans.pruning.sites import Site, attention_block_sites, ffn_block_sites, layer_sites, self_attention


@dataclass(frozen=True)
class Whole:
    """What goes as a whole; indices count in the model as it is before anything is removed."""

    layers: Mapping[str, Sequence[int]] | None = None
    """Stack -> layers that stay; None: all."""
    attention: Sequence[tuple[str, int]] = ()
    """(stack, index) of the layers that lose their self-attention."""
    ffn: Sequence[tuple[str, int]] = ()
    """(stack, index) of the layers that lose their FFN."""

    def stays(self, layer: Layer) -> bool:
        """Whether a layer of the original model stays."""
        return self.layers is None or layer.stack not in self.layers or layer.index in self.layers[layer.stack]

    def check(self, architecture: Architecture) -> None:
        """Raise what removing would raise, with nothing changed.

        Raises:
            UsageError: a layer that is not there, a stack that would be empty, a block that the model needs.
        """
        if self.layers is not None:
            architecture.check_layers(self.layers)
        for stack in architecture.stacks:
            layers = [layer for layer in architecture.layers if layer.stack == stack.name]
            needed = next((site.needed for layer in layers for site in layer.attention if site.needed), None)
            # The first layer that stays takes over what the first one holds for its whole stack.
            heir = next(layer for layer in layers if self.stays(layer))
            if needed and (stack.name, heir.index) in self.attention:
                raise UsageError(
                    f"the self-attention of {heir.path} cannot be removed as a whole: {needed}. "
                    "Remove that of another layer, or the whole layer"
                )

    def remove(self, architecture: Architecture) -> None:
        """Take everything out, in place."""
        for layer in architecture.layers:
            place = (layer.stack, layer.index)
            block = self_attention(layer)
            if place in self.attention and block is not None:
                block.remove(architecture.model)
            if place in self.ffn and layer.feed_forward.width:
                layer.feed_forward.remove(architecture.model)
        if self.layers is not None:
            architecture.drop_layers(self.layers)


NOTHING_WHOLE = Whole()


def choose(architecture: Architecture, config: Pruning, score: Scorer) -> Whole:
    """Which layers and sublayers go.

    Raises:
        UsageError: a request that removes nothing, everything or what is not there.
    """
    layers = architecture.layers
    kept = _layers(architecture, config, score)
    whole = Whole(layers=kept)
    if kept is not None and all(whole.stays(layer) for layer in layers):
        raise UsageError(f"keep_layers={config.keep_layers} removes nothing: the model has {len(layers)} layers")
    left = [layer for layer in layers if whole.stays(layer)]
    blocks = {"attention_layers": attention_block_sites, "ffn_layers": ffn_block_sites}
    lost = {name: _blocks(architecture, config, name, left, sites_of, score) for name, sites_of in blocks.items()}
    chosen = Whole(kept, lost["attention_layers"], lost["ffn_layers"])
    chosen.check(architecture)
    return chosen


def _layers(architecture: Architecture, config: Pruning, score: Scorer) -> dict[str, list[int]] | None:
    """Stack -> indices of the layers that stay; None where no layer is to go."""
    number = config.keep_layers
    if number is None:
        return None
    if not isinstance(number, int):
        kept = {stack.name: sorted(number) for stack in architecture.stacks}
    elif config.layer_choice == "even":
        kept = {
            stack.name: evenly_chosen(len(stack.modules), min(number, len(stack.modules)))
            for stack in architecture.stacks
        }
    else:
        layers = architecture.layers
        kept = _most_important(layers, layer_sites(layers), number, architecture.model, score)
    architecture.check_layers(kept)
    return kept


def _blocks(
    architecture: Architecture,
    config: Pruning,
    name: str,
    left: Sequence[Layer],
    sites_of: Callable[[Sequence[Layer]], list[Site]],
    score: Scorer,
) -> list[tuple[str, int]]:
    """(stack, index) of the layers that lose their sublayer."""
    wanted = getattr(config, name)
    if wanted is None:
        return []
    having = [layer for layer in left if sites_of([layer])]
    if isinstance(wanted, int):
        kept = _most_important(having, sites_of(having), wanted, architecture.model, score)
    else:
        kept = {stack.name: list(wanted) for stack in architecture.stacks}
        for stack in architecture.stacks:
            check_numbers(wanted, len(stack.modules), f"{name}: the {stack.name}")
    lost = [(layer.stack, layer.index) for layer in having if layer.index not in kept[layer.stack]]
    if not lost:
        raise UsageError(f"{name}={wanted} removes nothing: {len(having)} layers have such a sublayer")
    for stack in architecture.stacks:
        if all((layer.stack, layer.index) in lost for layer in having if layer.stack == stack.name):
            raise UsageError(f"{name}={wanted} would empty every layer of the {stack.name}: keep at least one")
    return lost


def _most_important(
    layers: Sequence[Layer], sites: Sequence[Site], number: int, model: PreTrainedModel, score: Scorer
) -> dict[str, list[int]]:
    """Stack -> sorted indices of its `number` most important layers; one site a layer."""
    scores = score(model, sites)
    kept: dict[str, list[int]] = {}
    for stack in dict.fromkeys(layer.stack for layer in layers):
        ranked = sorted(
            (-float(value), layer.index) for layer, value in zip(layers, scores, strict=True) if layer.stack == stack
        )
        kept[stack] = sorted(index for _, index in ranked[:number])
    return kept
