"""Units that go as a whole: a sublayer or a layer, of which a number is kept in each stack."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedModel

from effitrans.architectures import Architecture, Layer
from effitrans.errors import UsageError
from effitrans.layers import check_numbers
from effitrans.pruning.sites import PruningSite
from effitrans.pruning.units.base import PruningUnit, Scorer

Position = tuple[str, int]
"""(stack, index) of a layer in the model as it is before anything is removed."""


class WholeUnit(PruningUnit):
    """A sublayer or layer, of which a number is kept in each stack, or named ones."""

    value = int
    plural: ClassVar[str]
    """What several are called in messages."""

    def asked(self, config: Any) -> bool:
        return getattr(config, self.setting) is not None

    def uses_scores(self, config: Any) -> bool:
        return isinstance(getattr(config, self.setting), int)

    @abstractmethod
    def sites(self, layers: Sequence[Layer], config: Any = None) -> list[PruningSite]:
        """One site with a single part for each layer that has it; for scoring."""

    def kept(self, architecture: Architecture, layers: Sequence[Layer], config: Any, score: Scorer) -> dict[str, Any]:
        """Stack -> indices of the layers that keep it: the most important of `layers`, or those named."""
        wanted = getattr(config, self.setting)
        if isinstance(wanted, int):
            return most_important(layers, self.sites(layers), wanted, architecture.model, score)
        for stack in architecture.stacks:
            check_numbers(wanted, len(stack.modules), f"{self.setting}: the {stack.name}")
        return {stack.name: sorted(wanted) for stack in architecture.stacks}

    def choose(self, architecture: Architecture, left: Sequence[Layer], config: Any, score: Scorer) -> list[Position]:
        """Where it goes.

        Args:
            architecture: the model.
            left: what larger units leave of its layers.
            config: how many stay, or which.
            score: measures importance.

        Raises:
            UsageError: a request that removes nothing, everything or what is not there.
        """
        if not self.asked(config):
            return []
        having = [layer for layer in left if self.sites([layer])]
        kept = self.kept(architecture, having, config, score)
        lost = [(layer.stack, layer.index) for layer in having if layer.index not in kept[layer.stack]]
        asked = f"{self.setting}={getattr(config, self.setting)}"
        if not lost:
            raise UsageError(f"{asked} removes nothing: the model has {len(having)} {self.plural}")
        for stack in architecture.stacks:
            if all((layer.stack, layer.index) in lost for layer in having if layer.stack == stack.name):
                raise UsageError(f"{asked} would empty every layer of the {stack.name}: keep at least one")
        return lost

    @abstractmethod
    def without(self, layer: Layer) -> Layer | None:
        """What is left of a layer that loses it; None: nothing."""

    def check(self, architecture: Architecture, whole: "Whole") -> None:
        """Raise what removing would raise, with nothing changed."""

    @abstractmethod
    def remove(self, architecture: Architecture, positions: Sequence[Position]) -> None:
        """Take it out of these positions, in place."""

    @abstractmethod
    def summary(self, architecture: Architecture, positions: Sequence[Position]) -> dict[str, Any]:
        """What the history tells, made before anything is removed."""

    def shrink(self, architecture: Architecture, wanted: int | tuple[int, ...]) -> int | tuple[int, ...] | None:
        having = [layer for layer in architecture.layers if self.sites([layer])]
        counts = {}
        for stack in architecture.stacks:
            counts[stack.name] = sum(layer.stack == stack.name for layer in having)
            if not isinstance(wanted, int):
                whose = f"student {self.name}={','.join(map(str, wanted))}: the teacher's {stack.name}"
                check_numbers(wanted, len(stack.modules), whose)
            elif not 1 <= wanted <= counts[stack.name]:
                raise UsageError(
                    f"student {self.name}={wanted}: cannot keep {wanted} of {counts[stack.name]} {self.plural} of the "
                    f"teacher's {stack.name}, give a number from 1 to {counts[stack.name]}"
                )
        number = wanted if isinstance(wanted, int) else len(wanted)
        return None if set(counts.values()) == {number} else wanted


@dataclass(frozen=True)
class Whole:
    """The sublayers and layers that go."""

    lost: Mapping[WholeUnit, Sequence[Position]] = field(default_factory=dict)
    """In the order in which they are taken out, from the smallest unit to the largest."""

    def left(self, architecture: Architecture) -> list[Layer]:
        """What is left of the layers, as views on the model as it is."""
        return [left for layer in architecture.layers if (left := self._left(layer)) is not None]

    def _left(self, layer: Layer | None) -> Layer | None:
        for unit, positions in self.lost.items():
            if layer is not None and (layer.stack, layer.index) in positions:
                layer = unit.without(layer)
        return layer

    def check(self, architecture: Architecture) -> None:
        """Raise what removing would raise, with nothing changed.

        Raises:
            UsageError: a stack that would be empty, a block that the model needs.
        """
        for unit, positions in self.lost.items():
            if positions:
                unit.check(architecture, self)

    def remove(self, architecture: Architecture) -> None:
        """Take everything out, in place."""
        for unit, positions in self.lost.items():
            if positions:
                unit.remove(architecture, positions)

    def summary(self, architecture: Architecture) -> dict[str, Any]:
        """What the history tells, made before anything is removed."""
        told: dict[str, Any] = {}
        for unit, positions in self.lost.items():
            if positions:
                told |= unit.summary(architecture, positions)
        return told


def most_important(
    layers: Sequence[Layer], sites: Sequence[PruningSite], number: int, model: PreTrainedModel, score: Scorer
) -> dict[str, list[int]]:
    """Stack -> sorted indices of its `number` most important layers; one site per layer."""
    scores = score(model, sites)
    kept: dict[str, list[int]] = {}
    for stack in dict.fromkeys(layer.stack for layer in layers):
        ranked = sorted(
            (-float(value), layer.index) for layer, value in zip(layers, scores, strict=True) if layer.stack == stack
        )
        kept[stack] = sorted(index for _, index in ranked[:number])
    return kept
