"""Structured pruning: heads, FFN neurons and layers removed for real."""

from effitrans.pruning.config import FFNPruning, HeadPruning, LayerPruning, Pruning
from effitrans.pruning.importance import IMPORTANCE, Criterion
from effitrans.pruning.prune import prune

__all__ = ["IMPORTANCE", "Criterion", "FFNPruning", "HeadPruning", "LayerPruning", "Pruning", "prune"]
