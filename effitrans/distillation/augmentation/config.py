"""Which texts are added to the training examples."""

from typing import Self

from pydantic import Field, model_validator

from effitrans.config import Config, Count
from effitrans.errors import UsageError


class WordReplacement(Config):
    """Copies of the training examples with words replaced by a masked language model (TinyBERT)."""

    model: str
    """The masked language model that proposes words: a folder or hub name."""
    copies: int = Field(default=1, ge=1, le=1000)
    """Copies of each training example (default 1; TinyBERT takes 20)."""
    probability: float = Field(default=0.15, gt=0, le=1)
    """Probability of each word to be replaced (default 0.15; TinyBERT takes 0.4)."""
    candidates: Count = 15
    """Most likely tokens among which the replacement is drawn (default 15, as in the paper)."""


class Augmentation(Config):
    """Texts that the student learns from besides the training examples. Their labels are not known, so the loss of the
    whole training is the teacher's alone.
    """

    unlabeled: str | None = None
    """File of further texts (csv, json, jsonl, parquet, txt) with the task's input columns, for tasks with one answer
    per text (default: none)."""
    crops: int = Field(default=0, ge=0, le=1000)
    """Random parts of each training text, runs of neighbouring words, for tasks with one answer per text
    (default 0)."""
    word_replacement: WordReplacement | None = None
    """Copies of each training example with words replaced (default: none)."""

    @model_validator(mode="after")
    def _adds_something(self) -> Self:
        if self.unlabeled is None and not self.crops and self.word_replacement is None:
            raise UsageError("received no source of texts: set unlabeled, crops or word_replacement, or leave it out")
        return self
