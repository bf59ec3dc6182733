"""Pruning: heads, FFN neurons, channels, sublayers, layers, tokens and single weights are removed for real."""

from effitrans.pruning.config import FFNPruning, HeadPruning, HiddenPruning, Importance, LayerPruning, Pruning
from effitrans.pruning.importance import IMPORTANCE, Criterion
from effitrans.pruning.l0.config import L0Pruning
from effitrans.pruning.prune import METHODS, prune
from effitrans.pruning.scores import Scores, measure_importance
from effitrans.pruning.search.config import Search
from effitrans.pruning.sparse.config import Sparsity
from effitrans.pruning.structured import prune_units
from effitrans.pruning.units import UNITS
from effitrans.pruning.units.vocabulary import PrunedVocabulary, VocabularyPruning, prune_vocabulary, pruned_vocabulary

__all__ = [
    "IMPORTANCE",
    "METHODS",
    "UNITS",
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
    "prune_units",
    "prune_vocabulary",
    "pruned_vocabulary",
]
