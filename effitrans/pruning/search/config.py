"""What a search for a structure can be asked for."""

from typing import Annotated, Literal, Self

import pydantic

from effitrans.config import Count
from effitrans.pruning.config import Method, _Calibrated

Sampler = Literal["evolution", "tpe", "nsga2"]
Share = Annotated[float, pydantic.Field(gt=0)]
LIMITS = ("latency", "memory", "parameters", "bytes")
"""The costs that can be limited."""


class Search(_Calibrated):
    """The best model inside a budget, or the fastest above a quality: `prune(model, Search(latency=0.5), task)`."""

    latency: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Latency at most so many times the original one, measured on this machine at `batch` x `length`."""
    memory: Share | None = None
    """Memory of a forward pass at `batch` x `length` at most, weights and activations at their peak: a share of the
    original up to 1, bytes above."""
    parameters: Share | None = None
    """Parameters at most: a share of the original up to 1, a number above."""
    bytes: Share | None = None
    """Bytes of weights at most: a share of the original up to 1, a number above."""
    min_quality: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Instead of limits: the fastest model whose first metric on the task's validation split is at least this share
    of the original's, before any recovery."""
    batch: Count = 32
    """Examples a timed batch."""
    length: Count | Literal["data"] = 128
    """Tokens an example in timed batches; "data": the data's own batches, as they are padded."""
    method: Method = "taylor"
    """Criterion that says which units of a place go first, and guides the search between places."""
    whole: bool = True
    """Whether whole attention blocks, FFNs and layers may go."""
    widths: Annotated[Count, pydantic.Field(ge=2)] = 12
    """Widths to choose from in each place, evenly spaced; each is built and timed once."""
    multiple_of: Count = 8
    """FFN widths are multiples of this."""
    sampler: Sampler = "evolution"
    """Who proposes structures: "evolution", guided by importance; "tpe" or "nsga2", Optuna's (extra `search`)."""
    evaluations: Count = 96
    """Structures that are built and scored on calibration data, in all."""
    population: Annotated[Count, pydantic.Field(ge=2)] = 12
    """Structures from which the next ones are bred."""
    scored_examples: Count = 256
    """Calibration examples on which a structure's loss is measured; beside those that importance is measured on."""
    repeats: Annotated[Count, pydantic.Field(ge=2)] = 5
    """Rounds in which a width is timed, in turn with the original."""
    tolerance: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.03
    """The measured latency and memory of the result may exceed the limit by this share."""

    def idle(self) -> dict[str, str]:
        found: dict[str, str] = {}  # examples are scored whatever the method
        timed = self.latency is not None or self.min_quality is not None
        if not timed:
            found["repeats"] = "without latency or min_quality, where nothing is timed"
        if not timed and self.memory is None:
            found |= dict.fromkeys(("batch", "length", "tolerance"), "without latency, memory or min_quality")
        return found

    @pydantic.model_validator(mode="after")
    def _one_goal(self) -> Self:
        limits = [name for name in LIMITS if getattr(self, name) is not None]
        if not limits and self.min_quality is None:
            raise ValueError("nothing to search for: set latency, memory, parameters or bytes, or min_quality")
        if limits and self.min_quality is not None:
            raise ValueError(f"min_quality searches for the fastest model by itself: leave {', '.join(limits)} out")
        return self
