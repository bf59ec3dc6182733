"""What a pruning unit is: the thing that pruning removes, and all that is to be known about it.

A unit says which settings ask for it, where it is found in a model, how it is chosen and taken out, and what the
history tells. The fields of `Pruning` (and with them recipes and their schema), the options of `effitrans prune`,
the scores of `measure_importance` and the specs of `make_student` follow from the registry.

A `RatioUnit` is one of many like parts of a site (the heads of an attention block), of which a ratio is removed; a
`WholeUnit` (`whole.py`) is a sublayer or layer, of which a number is kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

import pydantic
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.architectures import Architecture, Layer
from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.pruning.selection import select
from effitrans.pruning.sites import PruningSite, remove_checked

Ratio = Annotated[float, pydantic.Field(ge=0, le=1)]
"""A fraction that is removed."""

Scorer = Callable[[PreTrainedModel, Sequence[PruningSite]], list[Tensor]]
"""(model, sites of it) -> the importance of their units: one tensor [units] per site."""


class Unit(ABC):
    """What every unit states, those with a recipe step of their own included (the vocabulary)."""

    setting: ClassVar[str]
    """Field of the step's config that asks for it. What is kept begins with `keep_`; all else is removed."""
    step: ClassVar[str] = "prune"
    """Recipe step that removes it."""
    value: ClassVar[type]
    """What its option takes."""
    help: ClassVar[str]
    """Help text of its option."""

    @property
    def name(self) -> str:
        """Its name in the registry and in the spec of a student: the setting without `keep_`."""
        return self.setting.removeprefix("keep_")

    @property
    def option(self) -> str:
        """Name of its option on the command line."""
        return "--" + self.setting.replace("_", "-")


class PruningUnit(Unit):
    """A unit that `prune` removes."""

    settings: ClassVar[type[Config]]
    """The fields of `Pruning` that belong to it: `setting`, and what no other unit reads."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Which of the shared settings `scope` and `multiple_of` it reads."""

    @abstractmethod
    def sites(self, layers: Sequence[Layer], config: Any) -> list[PruningSite]:
        """Where it is found in these layers; `config` holds at least the unit's settings."""

    @abstractmethod
    def asked(self, config: Any) -> bool:
        """Whether the config asks for its removal."""

    @abstractmethod
    def uses_scores(self, config: Any) -> bool:
        """Whether importance decides which ones go."""

    @abstractmethod
    def shrink(self, architecture: Architecture, wanted: Any) -> Any:
        """What `setting` is to be for a student with `wanted` of them; None where the teacher has as many.

        Raises:
            UsageError: more than the teacher has.
        """


class RatioUnit(PruningUnit):
    """Like parts of a site, of which a ratio is removed."""

    value = float

    def asked(self, config: Any) -> bool:
        return self.ratio(config) > 0

    uses_scores = asked

    def ratio(self, config: Any) -> float:
        """The fraction to remove."""
        return getattr(config, self.setting)

    def limits(self, config: Any) -> dict[str, Any]:
        """Further arguments of `select`."""
        return {name: getattr(config, name) for name in self.reads}

    def select(
        self, sites: Sequence[PruningSite], scores: Sequence[Tensor], config: Any, ratio: float
    ) -> list[list[int]]:
        """The parts of each site that go at this ratio."""
        return select(sites, scores, ratio, **self.limits(config))

    @abstractmethod
    def why_nothing(self, sites: Sequence[PruningSite], config: Any) -> str:
        """The message where the ratio removes nothing from these sites."""

    def check(self, architecture: Architecture) -> None:
        """Raise what removing would raise, with nothing changed."""

    def remove(self, model: PreTrainedModel, site: PruningSite, parts: Sequence[int]) -> None:
        """Cut parts out of a site, in place."""
        remove_checked(model, site, parts)

    @abstractmethod
    def sizes(self, architecture: Architecture) -> set[int]:
        """How many there are in each place, as a student's spec counts them."""

    def shrink(self, architecture: Architecture, wanted: int) -> float | None:
        found = self.sizes(architecture)
        if found == {wanted}:
            return None
        if len(found) > 1:
            raise UsageError(
                f"student {self.name}={wanted}: the teacher's layers have different numbers, {sorted(found)}: prune "
                "it (`effitrans prune`), which takes a ratio"
            )
        have = next(iter(found))
        if not 1 <= wanted <= have:
            raise UsageError(f"student {self.name}={wanted}: the teacher has {have}, give a number from 1 to {have}")
        return 1 - wanted / have
