"""The vocabulary: tokens leave the model and its tokenizer together."""

from effitrans.pruning.units.vocabulary.config import Vocabulary, VocabularyPruning
from effitrans.pruning.units.vocabulary.prune import PrunedVocabulary, prune_vocabulary, pruned_vocabulary

__all__ = ["PrunedVocabulary", "Vocabulary", "VocabularyPruning", "prune_vocabulary", "pruned_vocabulary"]
