"""The structures that a search chooses from: a number of heads or neurons in every place of the model.

A structure is a tuple of choices, one per place; choice 0 is the narrowest, which may be nothing at all.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.architectures import Architecture, adapter
from effitrans.pruning.sites import PruningSite, remove_checked
from effitrans.pruning.units import WHOLE_UNITS
from effitrans.pruning.units.heads import head_sites
from effitrans.pruning.units.neurons import ffn_sites
from effitrans.pruning.units.sublayers import self_attention
from effitrans.pruning.units.whole import Whole

Structure = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """A site whose width is chosen."""

    name: str
    kind: str
    """Places of one kind are built alike and cost the same: "encoder self 12"."""
    block: tuple[str, int, str] | None
    """(stack, layer, "attention" or "ffn") where nothing may be left; None where something must."""
    units: int
    widths: tuple[int, ...]
    """Units left, ascending."""
    lost: tuple[float, ...]
    """Importance that is lost at each of the widths."""
    order: tuple[int, ...]
    """Units from the least important on."""


class Space:
    """The places of a model, and how a structure is built.

    Args:
        model: the model, which is left as it is.
        scores: site name -> importance of its units.
        comparable: whether scores of different sites can be added; otherwise they are divided by their root mean
            square in each site.
        widths, multiple_of, whole: as in `Search`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        scores: Mapping[str, Tensor],
        *,
        comparable: bool,
        widths: int,
        multiple_of: int,
        whole: bool,
    ) -> None:
        self.model = model
        architecture = adapter(model)
        self.places: list[Place] = []
        for site, kind, block in _described(architecture):
            values = scores[site.name].float()
            if not comparable:
                values = values / (values.square().mean().sqrt() or 1.0)
            step = multiple_of if site.kind == "neuron" and site.units >= 2 * multiple_of else 1
            choices = _widths(site.units, step, widths, least=0 if whole and block else 1)
            order = values.argsort(stable=True)
            # A criterion may give negative scores; what a narrower width loses never falls all the same.
            gone = torch.cat([torch.zeros(1), values[order].clamp(min=0).cumsum(0)])
            lost = tuple(float(gone[site.units - width]) for width in choices)
            self.places.append(Place(site.name, kind, block, site.units, choices, lost, tuple(order.tolist())))

    @property
    def full(self) -> Structure:
        """The model as it is."""
        return tuple(len(place.widths) - 1 for place in self.places)

    @property
    def kinds(self) -> dict[str, list[int]]:
        """Kind -> the places of that kind."""
        found: dict[str, list[int]] = defaultdict(list)
        for index, place in enumerate(self.places):
            found[place.kind].append(index)
        return found

    def lost(self, structure: Structure) -> float:
        """Importance that a structure lacks."""
        return sum(place.lost[choice] for place, choice in zip(self.places, structure, strict=True))

    def widths(self, structure: Structure) -> dict[str, int]:
        """Place -> units that are left."""
        return {place.name: place.widths[choice] for place, choice in zip(self.places, structure, strict=True)}

    def allowed(self, structure: Structure) -> bool:
        """Whether every kind of place still has something somewhere, so that no stack is emptied."""
        return all(any(self.places[i].widths[structure[i]] for i in indices) for indices in self.kinds.values())

    def build(self, structure: Structure) -> PreTrainedModel:
        """The model with this structure, cut out of a copy of the original."""
        target = copy.deepcopy(self.model)
        architecture = adapter(target)
        whole = self.whole(structure)
        chosen = {place.name: (place, place.widths[c]) for place, c in zip(self.places, structure, strict=True)}
        for site, _, _ in _described(architecture):
            place, width = chosen[site.name]
            if 0 < width < site.units:
                remove_checked(target, site, sorted(place.order[: site.units - width]))
        whole.remove(architecture)
        return target

    def whole(self, structure: Structure) -> Whole:
        """What goes as a whole; a layer of which nothing is left goes with its norms."""
        attention, ffn = [], []
        for place, choice in zip(self.places, structure, strict=True):
            if place.block is not None and place.widths[choice] == 0:
                (attention if place.block[2] == "attention" else ffn).append(place.block[:2])
        empty = [
            (layer.stack, layer.index)
            for layer in adapter(self.model).layers
            if (layer.stack, layer.index) in attention
            and (layer.stack, layer.index) in ffn
            and all(not site.is_cross for site in layer.attention)
        ]
        lost = {
            "attention_layers": [position for position in attention if position not in empty],
            "ffn_layers": [position for position in ffn if position not in empty],
            "layers": empty,
        }
        return Whole({unit: lost.get(unit.name, ()) for unit in WHOLE_UNITS})


def _described(architecture: Architecture) -> list[tuple[PruningSite, str, tuple[str, int, str] | None]]:
    """(site, kind, block that may go) of every place, in a fixed order."""
    found: list[tuple[PruningSite, str, tuple[str, int, str] | None]] = []
    owners: dict[str, tuple[str, tuple[str, int, str] | None]] = {}
    for layer in architecture.layers:
        for attention in layer.attention:
            name = attention.shares_heads or attention.path
            own = self_attention(layer) is attention and not attention.shares_heads and not attention.needed
            stack = f"{layer.stack} {'cross' if attention.is_cross else 'self'}"
            owners[name] = (stack, (layer.stack, layer.index, "attention") if own else None)
        owners[layer.feed_forward.path] = (f"{layer.stack} ffn", (layer.stack, layer.index, "ffn"))
    for site in (*head_sites(architecture.layers), *ffn_sites(architecture.layers)):
        stack, block = owners[site.name]
        found.append((site, f"{stack} {site.units}", block))
    return found


def _widths(units: int, step: int, most: int, least: int) -> tuple[int, ...]:
    """Up to `most` widths from `least` (0, or one step) to all units, multiples of `step` but for the last."""
    steps = units // step
    count = min(most, steps + (least == 0))
    first = 0 if least == 0 else 1
    picked: Sequence[int] = [round(first + i * (steps - first) / max(1, count - 1)) for i in range(count)]
    return tuple(sorted({min(units, number * step) for number in picked} | {units}))
