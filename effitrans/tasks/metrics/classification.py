"""Metrics of class predictions, as functions of sums over examples."""

from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf

from effitrans.errors import UsageError
from effitrans.tasks.metrics.base import ExampleMetric, Labels, labels_of

if TYPE_CHECKING:
    from effitrans.tasks import Task

CALIBRATION_BINS = 15


def label_features() -> list[Features]:
    """Class ids, or lists of tags."""
    fields = ("predictions", "references")
    return [
        Features(dict.fromkeys(fields, Value("int64"))),
        Features(dict.fromkeys(fields, ListOf(Value("string")))),
    ]


class Accuracy(ExampleMetric):
    """Fraction of examples with the right class; for tag sequences the fraction of tags."""

    name = "accuracy"
    right_or_wrong = True

    def arrow_types(self) -> list[Features]:
        return label_features()

    def statistics(self, *inputs: Any) -> np.ndarray:
        labels = labels_of(*inputs)
        return labels.sums(np.stack([labels.predicted == labels.actual, np.ones(len(labels.actual))], axis=1))

    def value(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]


class _Binary(ExampleMetric):
    """Metric of true positives, predicted positives and actual positives; class 1 is the positive one."""

    def check_task(self, task: "Task") -> None:
        super().check_task(task)
        names = task.label_names() or ()
        if len(names) > 2:
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise UsageError(
                f"metric {self.name!r} of task {task.name!r} is for two labels, of which the second is the positive "
                f"one, and the task has {len(names)} ({shown}): use f1_macro, mcc or accuracy instead"
            )

    def statistics(self, *inputs: Any) -> np.ndarray:
        predictions, references = (np.asarray(values, dtype=np.int64) for values in inputs)
        highest = max(predictions.max(initial=0), references.max(initial=0))
        if highest > 1:
            raise UsageError(
                f"metric {self.name!r} is for two classes (1 is the positive one), and the data has class {highest}: "
                "use f1_macro, mcc or accuracy for more classes"
            )
        return np.stack([predictions & references, predictions, references], axis=1).astype(float)


class F1(_Binary):
    """Harmonic mean of precision and recall of class 1. 0 where there is no positive at all."""

    name = "f1"

    def value(self, sums: np.ndarray) -> np.ndarray:
        return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1e-12)


class Precision(_Binary):
    """Fraction of the predicted positives that are positive. 0 where none is predicted."""

    name = "precision"

    def value(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / np.maximum(sums[..., 1], 1e-12)


class Recall(_Binary):
    """Fraction of the positives that are found. 0 where there is none."""

    name = "recall"

    def value(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / np.maximum(sums[..., 2], 1e-12)


def _one_hot(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Whether each label is predicted, and whether it is actual, as each class that occurs: two of `[labels, C]`."""
    classes = np.union1d(labels.predicted, labels.actual)
    return labels.predicted[:, None] == classes, labels.actual[:, None] == classes


class MacroF1(ExampleMetric):
    """Unweighted mean over classes of the F1 of each class that occurs in predictions or references."""

    name = "f1_macro"

    def arrow_types(self) -> list[Features]:
        return label_features()

    def statistics(self, *inputs: Any) -> np.ndarray:
        labels = labels_of(*inputs)
        predicted, actual = _one_hot(labels)
        return labels.sums(np.concatenate([predicted & actual, predicted, actual], axis=1))

    def value(self, sums: np.ndarray) -> np.ndarray:
        hits, predicted, actual = np.split(sums, 3, axis=-1)
        occurs = predicted + actual > 0
        f1 = 2 * hits / np.maximum(predicted + actual, 1e-12)
        return f1.sum(-1) / np.maximum(occurs.sum(-1), 1)


class MatthewsCorrelation(ExampleMetric):
    """Matthews correlation of predicted and actual classes (Gorodkin 2004 for more than two). 0 where undefined."""

    name = "mcc"

    def statistics(self, *inputs: Any) -> np.ndarray:
        labels = labels_of(*inputs)
        predicted, actual = _one_hot(labels)
        hits = (labels.predicted == labels.actual)[:, None]
        return labels.sums(np.concatenate([hits, predicted, actual], axis=1))

    def value(self, sums: np.ndarray) -> np.ndarray:
        hits = sums[..., 0]
        predicted, actual = np.split(sums[..., 1:], 2, axis=-1)
        n = predicted.sum(-1)
        covariance = hits * n - (predicted * actual).sum(-1)
        scale = np.sqrt((n**2 - (predicted**2).sum(-1)) * (n**2 - (actual**2).sum(-1)))
        return covariance / np.maximum(scale, 1e-12)


class CalibrationError(ExampleMetric):
    """Expected calibration error (Naeini et al. 2015): |confidence - accuracy| in 15 equal bins, mean over examples."""

    name = "calibration_error"
    inputs = ("scores", "references")

    def arrow_types(self) -> Features:
        return Features({"scores": ListOf(Value("float32")), "references": Value("int64")})

    def statistics(self, *inputs: Any) -> np.ndarray:
        scores, references = np.asarray(inputs[0], dtype=np.float64), np.asarray(inputs[1])
        probabilities = np.exp(scores - scores.max(1, keepdims=True))
        confidence = probabilities.max(1) / probabilities.sum(1)
        right = scores.argmax(1) == references
        bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        in_bin = bins[:, None] == np.arange(CALIBRATION_BINS)
        return np.concatenate([in_bin * (confidence - right)[:, None], np.ones((len(bins), 1))], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return np.abs(sums[..., :-1]).sum(-1) / sums[..., -1]
