"""What `prune` can be asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import pydantic

from effitrans.config import Config, Count, Seed
from effitrans.errors import unknown_name
from effitrans.layers import Kept
from effitrans.pruning.importance import IMPORTANCE
from effitrans.pruning.selection import Scope
from effitrans.pruning.units import PRUNED, RATIO_UNITS, WHOLE_UNITS
from effitrans.pruning.units.base import PruningUnit, Ratio


def _known_method(name: str) -> str:
    if name not in IMPORTANCE:
        raise unknown_name("importance method", name, IMPORTANCE)
    return name


Method = Annotated[str, pydantic.AfterValidator(_known_method)]


class _Calibrated(Config):
    verb: ClassVar[str] = "prune"

    method: Method = "magnitude"
    """Importance criterion, a key of `IMPORTANCE`: "magnitude", "magnitude-l1", "random" (no data), "wanda" (inputs),
    "taylor", "fisher", "movement" (inputs with labels)."""
    calibration_examples: Count = 512
    """Number of examples that a criterion with data looks at."""
    batch_size: Count = 32
    """Examples per calibration batch; bounds the memory. A DataLoader has its own."""
    seed: Seed = 0
    """Seed with which the calibration examples are drawn from a task or a data set."""

    def idle(self) -> dict[str, str]:
        if IMPORTANCE[self.method].needs_data:
            return {}
        return dict.fromkeys(("calibration_examples", "batch_size"), f"where method {self.method!r} needs no data")


class Importance(_Calibrated):
    """What `measure_importance` measures, and on which examples."""

    verb: ClassVar[str] = "measure_importance"

    grouped_queries: Literal["groups", "queries"] = "groups"
    """Under grouped-query attention a head is: "groups", a key/value head with its queries; "queries", a query head."""


def _named(units: Sequence[PruningUnit]) -> str:
    """ "heads, ffn or hidden" """
    *others, last = [unit.setting for unit in units]
    return f"{', '.join(others)} or {last}" if others else last


class Pruning(*reversed([unit.settings for unit in PRUNED]), _Calibrated):
    """Several units in one pass, each with the fields of its own file in `units/`: what the command line and a recipe
    step parse to.

    Layers and sublayers go first; heads, neurons and channels are then scored together, on the model that is left.
    """

    scope: Scope = "layer"
    """"layer": the same ratio in each layer. "global": the least important of all layers go, by normalised scores."""
    steps: Count = 1
    """Steps in which heads, neurons and channels go, scored anew before each; with `recover`, trained after each.
    Layers and sublayers all go in the first."""
    schedule: Literal["linear", "cubic"] = "linear"
    """How much is gone after step t of T: "linear", ratio * t/T; "cubic", ratio * (1 - (1 - t/T)^3), most of it early
    (Zhu and Gupta 2017, arXiv:1710.01878, equation 1)."""
    multiple_of: Count = 8
    """FFN widths and the hidden width are rounded to multiples of this where they are at least twice as large."""

    if TYPE_CHECKING:
        # The fields of the units are known when the program runs.
        def __init__(self, **settings: Any) -> None: ...

    @pydantic.model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not any(unit.asked(self) for unit in PRUNED):
            raise ValueError(
                f"nothing to prune: set {_named(RATIO_UNITS)} to a ratio above 0, or {_named(WHOLE_UNITS)} to the "
                "number to keep"
            )
        return self

    def idle(self) -> dict[str, str]:
        found = _Calibrated.idle(self)
        if not self.uses_scores:
            unscored = "where layers are named or evenly chosen (layer_choice 'importance' ranks them)"
            found |= dict.fromkeys(("method", "calibration_examples", "batch_size"), unscored)
        for unit in PRUNED:
            found |= unit.settings.idle(self)
        for name in ("scope", "multiple_of"):
            readers = [unit for unit in RATIO_UNITS if name in unit.reads]
            if not any(unit.asked(self) for unit in readers):
                found[name] = f"without {_named(readers)}"
        if not any(unit.asked(self) for unit in RATIO_UNITS):
            found["steps"] = f"without {_named(RATIO_UNITS)}, as layers go at once"
        if self.steps == 1:
            found["schedule"] = "in one step"
        return found

    @property
    def uses_scores(self) -> bool:
        """Whether importance decides anything."""
        return any(unit.uses_scores(self) for unit in PRUNED)

    def gone_after(self, step: int) -> float:
        """Fraction of the ratios that is gone after a step, counted from 1; 1 after the last."""
        left = 1 - step / self.steps
        return 1 - left if self.schedule == "linear" else 1 - left**3


class _OneUnit(_Calibrated):
    """A `Pruning` of one unit; other fields as there."""

    amount: ClassVar[tuple[str, str]]
    """Its field that says how much, and that of `Pruning`."""

    def general(self) -> Pruning:
        """The same as a `Pruning`."""
        shared = {name: getattr(self, name) for name in type(self).model_fields if name in Pruning.model_fields}
        own, setting = self.amount
        return Pruning(**shared, **{setting: getattr(self, own)})


class HeadPruning(_OneUnit):
    """Remove attention heads. Fields as in `Pruning`."""

    amount = ("ratio", "heads")

    ratio: Ratio
    """Fraction of the heads to remove, 0 to 1."""
    scope: Scope = "layer"
    """"layer": the same ratio in each layer. "global": the least important of all layers go."""
    min_heads: Count | None = None
    """Heads that every layer keeps."""
    grouped_queries: Literal["groups", "queries"] = "groups"
    """What a head is under grouped-query attention."""


class FFNPruning(_OneUnit):
    """Remove neurons of the feed-forward networks. Fields as in `Pruning`."""

    amount = ("ratio", "ffn")

    ratio: Ratio
    """Fraction of the neurons to remove, 0 to 1."""
    scope: Scope = "layer"
    """"layer": the same ratio in each layer. "global": the least important of all layers go."""
    multiple_of: Count = 8
    """Widths are rounded to multiples of this."""


class HiddenPruning(_OneUnit):
    """Remove channels of the residual stream. Fields as in `Pruning`."""

    amount = ("ratio", "hidden")

    ratio: Ratio
    """Fraction of the channels to remove, 0 to 1."""
    multiple_of: Count = 8
    """The width is rounded to a multiple of this."""


class LayerPruning(_OneUnit):
    """Remove whole layers. Fields as in `Pruning`."""

    amount = ("keep", "keep_layers")

    keep: Kept
    """Layers to keep: how many in each stack, or which."""
    layer_choice: Literal["even", "importance"] = "even"
    """How a number of layers is chosen."""


SINGLE = (HeadPruning, FFNPruning, HiddenPruning, LayerPruning)
"""The configs of one unit."""
