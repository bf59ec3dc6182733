"""Distillation: a student learns a teacher's predictions and hidden states, with labels or without."""

from effitrans.distillation.augmentation import Augmentation, WordReplacement
from effitrans.distillation.cache.config import TeacherCache
from effitrans.distillation.config import Distillation
from effitrans.distillation.conversion import AttentionTransfer, Linearization, linearize
from effitrans.distillation.loop import distill
from effitrans.distillation.objectives import OBJECTIVES
from effitrans.distillation.sequences import SequenceLevel
from effitrans.distillation.student import check_compatible, make_student

__all__ = [
    "OBJECTIVES",
    "AttentionTransfer",
    "Augmentation",
    "Distillation",
    "Linearization",
    "SequenceLevel",
    "TeacherCache",
    "WordReplacement",
    "check_compatible",
    "distill",
    "linearize",
    "make_student",
]
