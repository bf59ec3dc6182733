"""The teacher's outputs on disk: computed once, read in every epoch and by every later run that needs the same."""

from effitrans.distillation.cache.teacher import CachedTeacher, with_index

__all__ = ["CachedTeacher", "with_index"]
