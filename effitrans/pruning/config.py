"""What `prune` can be asked for."""

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from effitrans.config import Config, Count, Seed
from effitrans.errors import unknown_name
from effitrans.layers import Kept
from effitrans.pruning.importance import IMPORTANCE
from effitrans.pruning.selection import Scope


def _known_method(name: str) -> str:
    if name not in IMPORTANCE:
        raise unknown_name("importance method", name, IMPORTANCE)
    return name


Ratio = Annotated[float, pydantic.Field(ge=0, le=1)]
Method = Annotated[str, pydantic.AfterValidator(_known_method)]


class _Calibrated(Config):
    verb: ClassVar[str] = "prune"

    method: Method = "magnitude"
    """Importance criterion, a key of `IMPORTANCE`: "magnitude", "magnitude-l1", "random" (no data), "wanda" (inputs),
    "taylor", "fisher", "movement" (inputs with labels)."""
    calibration_examples: Count = 512
    """Number of examples that a criterion with data looks at."""
    batch_size: Count = 32
    """Examples a calibration batch; bounds the memory. A DataLoader has its own."""
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


class Pruning(_Calibrated):
    """Heads, FFN neurons, channels, sublayers and layers in one pass: what the command line and a recipe step parse to.

    Layers and sublayers go first; heads, neurons and channels are then scored together, on the model that is left.
    """

    heads: Ratio = 0.0
    """Fraction of the attention heads to remove, 0 to 1; self- and cross-attention alike."""
    ffn: Ratio = 0.0
    """Fraction of the FFN neurons to remove, 0 to 1."""
    hidden: Ratio = 0.0
    """Fraction of the channels of the residual stream to remove, 0 to 1: embeddings, norms, all that reads and writes
    the stream, and task heads become narrower."""
    keep_layers: Kept | None = None
    """Layers to keep: how many in each stack (a number), or which, counted from 0 in each stack ("0-3,5", a list).
    None: all."""
    attention_layers: Kept | None = None
    """Layers that keep their self-attention: how many in each stack (the most important by `method` of the layers that
    stay), or which, counted from 0 in the model as it is. The other layers lose the whole block. None: all."""
    ffn_layers: Kept | None = None
    """Layers that keep their FFN, likewise. None: all."""
    scope: Scope = "layer"
    """"layer": the same ratio in each layer. "global": the least important of all layers go, by normalised scores."""
    steps: Count = 1
    """Heads, neurons and channels go in so many steps, scored anew before each; with `recover`, trained after each.
    Layers and sublayers all go in the first."""
    schedule: Literal["linear", "cubic"] = "linear"
    """How much is gone after step t of T: "linear", ratio * t/T; "cubic", ratio * (1 - (1 - t/T)^3), most of it early
    (Zhu and Gupta 2017, arXiv:1710.01878, equation 1)."""
    layer_choice: Literal["even", "importance"] = "even"
    """How a number of layers is chosen: evenly spaced from first to last, or the most important by `method`."""
    min_heads: Count | None = None
    """Heads that every layer keeps. None: 1 under scope "global"; under "layer" a ratio that leaves none is refused."""
    multiple_of: Count = 8
    """FFN widths and the hidden width are rounded to multiples of this where they are at least twice as large."""
    grouped_queries: Literal["groups", "queries"] = "groups"
    """Under grouped-query attention a head is: "groups", a key/value head with its queries; "queries", a query head."""

    @pydantic.model_validator(mode="after")
    def _something_to_do(self) -> Self:
        whole = (self.keep_layers, self.attention_layers, self.ffn_layers)
        if not (self.heads or self.ffn or self.hidden) and all(kept is None for kept in whole):
            raise ValueError(
                "nothing to prune: set heads, ffn or hidden to a ratio above 0, or keep_layers, attention_layers "
                "or ffn_layers to the number to keep"
            )
        return self

    def idle(self) -> dict[str, str]:
        found = super().idle()
        if not self.uses_scores:
            unscored = "where layers are named or evenly chosen (layer_choice 'importance' ranks them)"
            found |= dict.fromkeys(("method", "calibration_examples", "batch_size"), unscored)
        if not isinstance(self.keep_layers, int):
            found["layer_choice"] = "without keep_layers as a number"
        if not self.heads:
            found |= dict.fromkeys(("min_heads", "grouped_queries"), "without heads")
        if not (self.heads or self.ffn):
            found["scope"] = "without heads or ffn"
        if not (self.ffn or self.hidden):
            found["multiple_of"] = "without ffn or hidden"
        if not (self.heads or self.ffn or self.hidden):
            found["steps"] = "without heads, ffn or hidden, as layers go at once"
        if self.steps == 1:
            found["schedule"] = "in one step"
        return found

    @property
    def uses_scores(self) -> bool:
        """Whether importance decides anything."""
        by_importance = isinstance(self.keep_layers, int) and self.layer_choice == "importance"
        blocks = isinstance(self.attention_layers, int) or isinstance(self.ffn_layers, int)
        return bool(self.heads or self.ffn or self.hidden or by_importance or blocks)

    def gone_after(self, step: int) -> float:
        """Fraction of the ratios that is gone after a step, counted from 1; 1 after the last."""
        left = 1 - step / self.steps
        return 1 - left if self.schedule == "linear" else 1 - left**3


class HeadPruning(_Calibrated):
    """Remove attention heads. Fields as in `Pruning`."""

    ratio: Ratio
    """Fraction of the heads to remove, 0 to 1."""
    scope: Scope = "layer"
    """"layer": the same ratio in each layer. "global": the least important of all layers go."""
    min_heads: Count | None = None
    """Heads that every layer keeps."""
    grouped_queries: Literal["groups", "queries"] = "groups"
    """What a head is under grouped-query attention."""

    def general(self) -> Pruning:
        """The same as a `Pruning`."""
        return _general(self, heads=self.ratio)


class FFNPruning(_Calibrated):
    """Remove neurons of the feed-forward networks. Fields as in `Pruning`."""

    ratio: Ratio
    """Fraction of the neurons to remove, 0 to 1."""
    scope: Scope = "layer"
    """"layer": the same ratio in each layer. "global": the least important of all layers go."""
    multiple_of: Count = 8
    """Widths are rounded to multiples of this."""

    def general(self) -> Pruning:
        """The same as a `Pruning`."""
        return _general(self, ffn=self.ratio)


class HiddenPruning(_Calibrated):
    """Remove channels of the residual stream. Fields as in `Pruning`."""

    ratio: Ratio
    """Fraction of the channels to remove, 0 to 1."""
    multiple_of: Count = 8
    """The width is rounded to a multiple of this."""

    def general(self) -> Pruning:
        """The same as a `Pruning`."""
        return _general(self, hidden=self.ratio)


class LayerPruning(_Calibrated):
    """Remove whole layers. Fields as in `Pruning`."""

    keep: Kept
    """Layers to keep: how many in each stack, or which."""
    layer_choice: Literal["even", "importance"] = "even"
    """How a number of layers is chosen."""

    def general(self) -> Pruning:
        """The same as a `Pruning`."""
        return _general(self, keep_layers=self.keep)


def _general(config: Config, **unit: Any) -> Pruning:
    shared = {name: getattr(config, name) for name in type(config).model_fields if name in Pruning.model_fields}
    return Pruning(**shared, **unit)
