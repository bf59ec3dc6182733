"""Further texts, without labels, that the student learns from the teacher alone."""

from effitrans.distillation.augmentation.config import Augmentation, WordReplacement
from effitrans.distillation.augmentation.texts import with_texts
from effitrans.distillation.augmentation.word_replacement import with_copies

__all__ = ["Augmentation", "WordReplacement", "with_copies", "with_texts"]
