"""Structured pruning: heads, FFN neurons, channels, sublayers and layers removed for real."""

from effitrans.pruning.config import FFNPruning, HeadPruning, HiddenPruning, Importance, LayerPruning, Pruning
from effitrans.pruning.importance import IMPORTANCE, Criterion
from effitrans.pruning.l0.config import L0Pruning
from effitrans.pruning.prune import prune
from effitrans.pruning.scores import Scores, measure_importance
from effitrans.pruning.search.config import Search
from effitrans.pruning.sparse.config import Sparsity
from effitrans.pruning.vocabulary import PrunedVocabulary, VocabularyPruning, prune_vocabulary

__all__ = [
    "IMPORTANCE",
    "Criterion",
    "FFNPruning",
    "HeadPruning",
    "HiddenPruning",
    "Importance",
    "L0Pruning",
    "LayerPruning",
    "PrunedVocabulary",
    "Pruning",
    "Scores",
    "Search",
    "Sparsity",
    "VocabularyPruning",
    "measure_importance",
    "prune",
    "prune_vocabulary",
]
