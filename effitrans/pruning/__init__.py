"""Structured pruning: heads, FFN neurons, sublayers and layers removed for real."""

from effitrans.pruning.config import FFNPruning, HeadPruning, Importance, LayerPruning, Pruning
from effitrans.pruning.importance import IMPORTANCE, Criterion
from effitrans.pruning.prune import prune
from effitrans.pruning.scores import Scores, measure_importance

__all__ = [
    "IMPORTANCE",
    "Criterion",
    "FFNPruning",
    "HeadPruning",
    "Importance",
    "LayerPruning",
    "Pruning",
    "Scores",
    "measure_importance",
    "prune",
]
