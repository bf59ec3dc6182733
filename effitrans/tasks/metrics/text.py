"""Metrics of strings, as means over examples. A reference is one string or a list of valid ones (the best counts)."""

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf

from effitrans.tasks.metrics.base import ExampleMetric


def text_features() -> list[Features]:
    """A prediction is a string, a reference a string or a list of strings."""
    text = Value("string")
    return [
        Features({"predictions": text, "references": text}),
        Features({"predictions": text, "references": ListOf(text)}),
    ]


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and repeated spaces (Rajpurkar et al. 2016, SQuAD)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


class _BestReference(ExampleMetric):
    """Mean over examples of a score against the best of the valid references."""

    def arrow_types(self) -> list[Features]:
        return text_features()

    def score(self, prediction: str, reference: str) -> float:
        """Score of one example, 0 to 1."""
        raise NotImplementedError

    def statistics(self, *inputs: Any) -> np.ndarray:
        best = [
            max((self.score(prediction, r) for r in as_list(reference)), default=0.0)
            for prediction, reference in zip(*inputs, strict=True)
        ]
        return np.stack([np.array(best, dtype=float), np.ones(len(best))], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]


def as_list(reference: Any) -> list[str]:
    """The valid references of one example."""
    return [reference] if isinstance(reference, str) else list(reference)


class ExactMatch(_BestReference):
    """Fraction of predictions that equal a reference after SQuAD's normalization."""

    name = "exact_match"
    right_or_wrong = True

    def score(self, prediction: str, reference: str) -> float:
        return float(normalize_answer(prediction) == normalize_answer(reference))


class SpanF1(_BestReference):
    """F1 over the words shared with a reference after SQuAD's normalization."""

    name = "f1_span"

    def score(self, prediction: str, reference: str) -> float:
        predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
        if not predicted or not expected:
            return float(predicted == expected)
        return 2 * sum((Counter(predicted) & Counter(expected)).values()) / (len(predicted) + len(expected))


class RougeL(_BestReference):
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of lower-case words. No stemming.

    Words are runs of letters and digits of any alphabet. The reference scorer, Google's rouge-score, keeps a to z and 0
    to 9 alone: it splits "naïve" into "na" and "ve" and sees no word in Greek or Chinese text. On plain English the
    two agree.
    """

    name = "rouge_l"
    words: Callable[[str], list[str]] = staticmethod(re.compile(r"[^\W_]+").findall)

    def score(self, prediction: str, reference: str) -> float:
        predicted, expected = self.words(prediction.lower()), self.words(reference.lower())
        common = longest_common_subsequence(predicted, expected)
        return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, with one big integer as the row of the table (Hyyrö 2004)."""
    positions: dict[str, int] = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << index
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        matched = row & positions.get(word, 0)
        row = (row + matched | row - matched) & everything
    return len(first) - row.bit_count()
