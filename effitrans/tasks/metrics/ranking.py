"""Metrics of order. They are no function of sums, but ranks under resampling weights are cumulative sums."""

from typing import Any

import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf

from effitrans.tasks.metrics.base import ExampleMetric

JACKKNIFE_LIMIT = 4000
"""Above this many examples N the jackknife (N^2 steps) is left out and intervals are plain percentiles."""


class _Ranked(ExampleMetric):
    def jackknife(self, statistics_NK: np.ndarray) -> np.ndarray | None:
        n = len(statistics_NK)
        if n > JACKKNIFE_LIMIT:
            return None
        block = 256
        return np.concatenate(
            [self.values(statistics_NK, 1.0 - np.eye(min(block, n - start), n, start)) for start in range(0, n, block)]
        )


def weight_below(values_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Weight of the smaller examples, plus half that of the equal ones (itself included), for each example `[R, N]`."""
    order = np.argsort(values_N, kind="stable")
    ordered = values_N[order]
    cumulative = np.concatenate([np.zeros((len(counts_RN), 1)), np.cumsum(counts_RN[:, order], axis=1)], axis=1)
    first, last = np.searchsorted(ordered, values_N, "left"), np.searchsorted(ordered, values_N, "right")
    return (cumulative[:, first] + cumulative[:, last]) / 2


class Spearman(_Ranked):
    """Spearman rank correlation of predictions and references; ties share their mean rank."""

    name = "spearman"
    field = Value("float64")

    def statistics(self, *inputs: Any) -> np.ndarray:
        return np.stack([np.asarray(values, dtype=np.float64) for values in inputs], axis=1)

    def values(self, statistics_NK: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
        total = counts_RN.sum(1, keepdims=True)
        x, y = (weight_below(column, counts_RN) / total - 0.5 for column in statistics_NK.T)
        covariance, x_variance, y_variance = ((counts_RN * product).sum(1) for product in (x * y, x * x, y * y))
        return covariance / np.sqrt(x_variance * y_variance)


class RocAuc(_Ranked):
    """Area under the ROC curve of class 1; with more classes the mean over classes, each against the rest."""

    name = "roc_auc"
    inputs = ("scores", "references")

    def arrow_types(self) -> Features:
        return Features({"scores": ListOf(Value("float32")), "references": Value("int64")})

    def statistics(self, *inputs: Any) -> np.ndarray:
        scores, references = np.asarray(inputs[0], dtype=np.float64), np.asarray(inputs[1])
        classes = scores.shape[1]
        if classes == 2:
            return np.stack([scores[:, 1] - scores[:, 0], references == 1], axis=1)
        exponent = np.exp(scores - scores.max(1, keepdims=True))
        return np.concatenate(
            [exponent / exponent.sum(1, keepdims=True), references[:, None] == np.arange(classes)], axis=1
        )

    def values(self, statistics_NK: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
        scores, positives = np.split(statistics_NK, 2, axis=1)
        areas = []
        for score, positive in zip(scores.T, positives.T, strict=True):
            negative_below = weight_below(score, counts_RN * (1 - positive))
            pairs = (counts_RN @ positive) * (counts_RN @ (1 - positive))
            areas.append((counts_RN * positive * negative_below).sum(1) / pairs)
        return np.mean(areas, axis=0)
