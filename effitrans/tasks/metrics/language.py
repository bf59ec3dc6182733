"""Metrics of predicted tokens, from the negative log-likelihood of each example."""

from typing import Any

import numpy as np
from datasets import Value

from effitrans.tasks.metrics.base import ExampleMetric


class CrossEntropy(ExampleMetric):
    """Negative log-likelihood in nats for each predicted token (for classes: for each example)."""

    name = "cross_entropy"
    inputs: tuple[str, ...] = ("losses", "weights")
    field = Value("float64")

    def statistics(self, *inputs: Any) -> np.ndarray:
        return np.stack([np.asarray(values, dtype=np.float64) for values in inputs], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]


class Perplexity(CrossEntropy):
    """Exponential of the cross-entropy a token. Comparable only between models with the same tokenizer."""

    name = "perplexity"

    def value(self, sums: np.ndarray) -> np.ndarray:
        return np.exp(super().value(sums))


class BitsPerByte(CrossEntropy):
    """Bits for each byte of UTF-8 text. Comparable between tokenizers."""

    name = "bits_per_byte"
    inputs = ("losses", "bytes")

    def value(self, sums: np.ndarray) -> np.ndarray:
        return super().value(sums) / np.log(2)
