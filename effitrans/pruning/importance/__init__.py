"""Importance criteria: how much a unit matters. One file each, one line in `IMPORTANCE`.

A criterion is a function `score(model, sites, batches) -> list[Tensor]`: one float32 tensor [units] per site, on
the CPU; the larger, the more it matters. It leaves the model as it found it. A criterion that draws random
numbers takes `seed` as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from effitrans.pruning.importance import fisher, magnitude, movement, random, taylor, wanda

Score = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class Criterion:
    """An importance criterion and what it asks for."""

    score: Score
    needs_data: bool
    """Whether it measures on calibration batches."""
    needs_labels: bool = False
    """Whether it reads the loss, and so needs batches with labels."""
    seeded: bool = False
    """Whether it takes `seed`."""
    additive: bool = False
    """Whether scores estimate changes of the loss, so that they compare and add up over sites of different kinds."""


IMPORTANCE: dict[str, Criterion] = {
    "magnitude": Criterion(magnitude.score, needs_data=False),
    "magnitude-l1": Criterion(magnitude.score_l1, needs_data=False),
    "taylor": Criterion(taylor.score, needs_data=True, needs_labels=True, additive=True),
    "fisher": Criterion(fisher.score, needs_data=True, needs_labels=True, additive=True),
    "wanda": Criterion(wanda.score, needs_data=True),
    "movement": Criterion(movement.score, needs_data=True, needs_labels=True),
    "random": Criterion(random.score, needs_data=False, seeded=True),
}
"""Name -> criterion."""
