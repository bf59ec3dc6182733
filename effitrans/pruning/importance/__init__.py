"""Importance criteria: how much a unit matters. One file each, one line in `IMPORTANCE`.

A criterion is a function `score(model, sites, batches) -> list[Tensor]`: one float32 tensor [units] a site, on
the CPU; the larger, the more it matters. It leaves the model as it found it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from effitrans.pruning.importance import magnitude, taylor
from effitrans.pruning.sites import Site

Score = Callable[[PreTrainedModel, Sequence[Site], Iterable[Mapping[str, Tensor]]], list[Tensor]]


@dataclass(frozen=True)
class Criterion:
    """An importance criterion and what it asks for."""

    score: Score
    needs_data: bool
    """Whether it measures on labelled calibration batches."""


IMPORTANCE: dict[str, Criterion] = {
    "magnitude": Criterion(magnitude.score, needs_data=False),
    "taylor": Criterion(taylor.score, needs_data=True),
}
"""Name -> criterion."""
