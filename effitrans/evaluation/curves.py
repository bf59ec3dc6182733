"""What a classifier confuses, and its receiver operating characteristic: pictures behind the one number."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from effitrans.evaluation.record import Change, Confusion, Curve, Flips

if TYPE_CHECKING:
    from effitrans.tasks import Predictions, Task

MOST_CLASSES = 20
POINTS = 100
LISTED = 10
"""Examples of each kind of flip that a record holds with their text."""
_LONGEST = 280


def confusion(predictions: "Predictions", labels: Sequence[str] | None) -> Confusion | None:
    """How often each class was taken for which. None for other tasks, and beyond 20 classes."""
    scores = predictions.scores
    if scores is None or not 2 <= scores.shape[1] <= MOST_CLASSES:
        return None
    assert predictions.predictions is not None
    assert predictions.references is not None
    classes = scores.shape[1]
    counts = np.zeros((classes, classes), dtype=int)
    np.add.at(counts, (predictions.references, predictions.predictions), 1)
    names = labels if labels and len(labels) == classes else [str(i) for i in range(classes)]
    return Confusion(labels=tuple(names), counts=tuple(tuple(row) for row in counts.tolist()))


def roc(predictions: "Predictions") -> Curve | None:
    """The curve of a binary classifier, thinned to 100 points. None where a class does not occur or there are more."""
    scores, references = predictions.scores, predictions.references
    if scores is None or scores.shape[1] != 2 or references is None or len(set(references)) < 2:
        return None
    from sklearn.metrics import roc_curve

    false_positives, true_positives, _ = roc_curve(references, scores[:, 1] - scores[:, 0])
    kept = np.unique(np.linspace(0, len(false_positives) - 1, POINTS).round().astype(int))
    return Curve(x=_rounded(false_positives[kept]), y=_rounded(true_positives[kept]))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)


def changes(
    flips: Flips | None, predictions: "Predictions", baseline: "Predictions", task: "Task", split: str
) -> tuple[Change, ...]:
    """The first ten examples that were lost and the first ten that were gained, with their text."""
    if flips is None or predictions.predictions is None:
        return ()
    assert predictions.references is not None
    assert baseline.predictions is not None
    chosen = sorted(flips.lost[:LISTED]) + sorted(flips.gained[:LISTED])
    rows = task.rows(split)
    names = task.label_names()

    def named(value: Any) -> str:
        return names[value] if names and isinstance(value, int | np.integer) else str(value)

    return tuple(
        Change(
            row=row,
            inputs=tuple(_text(rows[row][column]) for column in task.input_columns),
            reference=named(predictions.references[row]),
            baseline=named(baseline.predictions[row]),
            model=named(predictions.predictions[row]),
        )
        for row in chosen
    )


def _text(value: Any) -> str | None:
    """Text, shortened; null for what is none, such as an image."""
    if not isinstance(value, str):
        return None
    return value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…"
