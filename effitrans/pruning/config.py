"""What `prune` can be asked for."""

from typing import Annotated, Any, Literal, Self

import pydantic

from effitrans.config import Config
from effitrans.errors import unknown_name
from effitrans.pruning.importance import IMPORTANCE
from effitrans.pruning.selection import Scope


def _known_method(name: str) -> str:
    if name not in IMPORTANCE:
        raise unknown_name("importance method", name, IMPORTANCE)
    return name


Ratio = Annotated[float, pydantic.Field(ge=0, le=1)]
Method = Annotated[str, pydantic.AfterValidator(_known_method)]
Kept = Annotated[int, pydantic.Field(ge=1)] | tuple[Annotated[int, pydantic.Field(ge=0)], ...]


class _Calibrated(Config):
    method: Method = "magnitude"
    """Importance criterion, a key of `IMPORTANCE`: "magnitude" (no data) or "taylor" (labelled data)."""
    calibration_examples: Annotated[int, pydantic.Field(ge=1)] = 512
    """Number of examples that a criterion with data looks at."""
    batch_size: Annotated[int, pydantic.Field(ge=1)] = 32
    """Examples a calibration batch; bounds the memory. A DataLoader has its own."""
    seed: int = 0
    """Seed with which the calibration examples are drawn from a task or a data set."""


class Pruning(_Calibrated):
    """Heads, FFN neurons and layers in one pass: what the command line and a recipe step parse to.

    Layers go first; heads and neurons are then scored together, on the model that is left.
    """

    heads: Ratio = 0.0
    """Fraction of the attention heads to remove, 0 to 1; self- and cross-attention alike."""
    ffn: Ratio = 0.0
    """Fraction of the FFN neurons to remove, 0 to 1."""
    layers: Kept | None = None
    """Layers to keep: how many in each stack, or their indices from 0. None: all."""
    scope: Scope = "layer"
    """"layer": the same ratio in each layer. "global": the least important of all layers go, by normalised scores."""
    layer_choice: Literal["even", "importance"] = "even"
    """How a number of layers is chosen: evenly spaced from first to last, or the most important by `method`."""
    min_heads: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Heads that every layer keeps. None: 1 under scope "global"; under "layer" a ratio that leaves none is refused."""
    multiple_of: Annotated[int, pydantic.Field(ge=1)] = 8
    """FFN widths are rounded to multiples of this where the FFN has at least twice as many neurons."""
    grouped_queries: Literal["groups", "queries"] = "groups"
    """Under grouped-query attention a head is: "groups", a key/value head with its queries; "queries", a query head."""

    @pydantic.model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not self.heads and not self.ffn and self.layers is None:
            raise ValueError("nothing to prune: set heads or ffn to a ratio above 0, or layers to the number to keep")
        by_importance = isinstance(self.layers, int) and self.layer_choice == "importance"
        if not self.heads and not self.ffn and not by_importance and self.method != "magnitude":
            raise ValueError(
                f"method {self.method!r} would not be used: layers are chosen evenly. "
                "Set layer_choice to 'importance', or leave the method out"
            )
        return self


class HeadPruning(_Calibrated):
    """Remove attention heads. Fields as in `Pruning`."""

    ratio: Ratio
    """Fraction of the heads to remove, 0 to 1."""
    scope: Scope = "layer"
    """"layer": the same ratio in each layer. "global": the least important of all layers go."""
    min_heads: Annotated[int, pydantic.Field(ge=1)] | None = None
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
    multiple_of: Annotated[int, pydantic.Field(ge=1)] = 8
    """Widths are rounded to multiples of this."""

    def general(self) -> Pruning:
        """The same as a `Pruning`."""
        return _general(self, ffn=self.ratio)


class LayerPruning(_Calibrated):
    """Remove whole layers. Fields as in `Pruning`."""

    keep: Kept
    """Layers to keep: how many in each stack, or their indices from 0."""
    layer_choice: Literal["even", "importance"] = "even"
    """How a number of layers is chosen."""

    def general(self) -> Pruning:
        """The same as a `Pruning`."""
        return _general(self, layers=self.keep)


def _general(config: Config, **unit: Any) -> Pruning:
    shared = {name: getattr(config, name) for name in type(config).model_fields if name in Pruning.model_fields}
    return Pruning(**shared, **unit)
