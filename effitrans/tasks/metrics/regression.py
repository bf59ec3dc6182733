"""Metrics of predicted numbers, as functions of sums over examples."""

from typing import Any

import numpy as np
from datasets import Value

from effitrans.tasks.metrics.base import ExampleMetric


class Pearson(ExampleMetric):
    """Pearson correlation of predictions and references. NaN where one of them is constant."""

    name = "pearson"
    field = Value("float64")

    def statistics(self, *inputs: Any) -> np.ndarray:
        # Centred first: the sums below would cancel badly for values far from zero.
        x, y = (np.asarray(values, dtype=np.float64) - np.mean(values) for values in inputs)
        return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        return (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))


class MeanSquaredError(ExampleMetric):
    """Mean squared difference of predictions and references."""

    name = "mse"
    field = Value("float64")

    def statistics(self, *inputs: Any) -> np.ndarray:
        predictions, references = (np.asarray(values, dtype=np.float64) for values in inputs)
        return np.stack([(predictions - references) ** 2, np.ones(len(references))], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]
