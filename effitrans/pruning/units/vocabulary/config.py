"""What pruning the vocabulary can be asked for."""

from typing import ClassVar

from effitrans.config import Config, Count
from effitrans.pruning.units.base import Unit


class VocabularyPruning(Config):
    """Which tokens stay."""

    verb: ClassVar[str] = "prune_vocabulary"

    corpus: str | None = None
    """Task, built in or a YAML file, whose texts decide. Default: the task of the recipe or command."""
    splits: tuple[str, ...] = ("train",)
    """Splits of the task that are read."""
    min_count: Count = 1
    """A token stays if it occurs at least this often. Tokens that others are merged from stay as well."""
    characters: bool = True
    """Keep all tokens of one character or byte, so that any other word can be spelled."""


class Vocabulary(Unit):
    """Tokens. They go by a verb of their own, `prune_vocabulary`, which changes the tokenizer too."""

    step = "prune_vocabulary"
    setting = "corpus"
    value = str
    help = "Task whose texts decide which tokens stay; all others are removed."

    @property
    def option(self) -> str:
        return "--vocab"
