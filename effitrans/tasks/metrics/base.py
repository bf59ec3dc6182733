"""What every quality metric is: an `evaluate.Metric` that also knows its per-example statistics.

The statistics serve the bootstrap: a metric is a function of their sums over examples, so resampling examples is one
matrix product. Shapes: N examples, K statistics, R resamples.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Value

if TYPE_CHECKING:
    from effitrans.tasks import Task


class ExampleMetric(evaluate.Metric):
    """Base of the built-in metrics.

    Subclasses define `statistics` and `value`, and say which fields of a task's predictions they read (`inputs`).
    `compute(...)` takes those fields by keyword and works without a network.

    >>> from effitrans.tasks.metrics import metric
    >>> metric("accuracy").compute(predictions=[0, 1, 1], references=[0, 1, 0])
    {'accuracy': 0.6666666666666666}
    """

    name: str = ""
    inputs: ClassVar[tuple[str, ...]] = ("predictions", "references")
    right_or_wrong: ClassVar[bool] = False
    """Each example scores 0 or 1 and the metric is the mean: the intervals and the test of `proportions` apply."""
    resamples: ClassVar[int] = 2000
    """Bootstrap resamples for its intervals."""
    field: ClassVar[Any] = Value("int64")
    """Arrow type of one prediction and one reference."""

    def __init__(self, **options: Any):
        super().__init__(keep_in_memory=True, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or self.name,
            citation="",
            inputs_description="",
            features=self.arrow_types(),
        )

    def arrow_types(self) -> Features | list[Features]:
        """Arrow types of the inputs."""
        return Features(dict.fromkeys(self.inputs, self.field))

    def check_task(self, task: "Task") -> None:
        """Refuse a task whose labels already tell that this metric cannot score it."""

    def statistics(self, *inputs: Any) -> np.ndarray:
        """Per-example statistics `[N, K]` from the fields named in `inputs`, in that order."""
        raise NotImplementedError

    def value(self, sums: np.ndarray) -> np.ndarray:
        """The metric `[...]` from sums of the statistics `[..., K]`; NaN where it is undefined."""
        raise NotImplementedError

    def values(self, statistics_NK: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
        """The metric `[R]` when example n counts `counts[r, n]` times."""
        return self.value(counts_RN @ statistics_NK)

    def jackknife(self, statistics_NK: np.ndarray) -> np.ndarray | None:
        """The metric `[N]` without each example in turn."""
        return self.value(statistics_NK.sum(0) - statistics_NK)

    def point(self, statistics_NK: np.ndarray) -> float:
        """The metric on all examples."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self.values(statistics_NK, np.ones((1, len(statistics_NK))))[0])

    def _compute(self, **inputs: Any) -> dict[str, float]:
        return {self.name: self.point(self.statistics(*(inputs[name] for name in self.inputs)))}


@dataclass(frozen=True)
class Labels:
    """Predicted and actual classes in one row, with the example that each comes from.

    An example is one class, or the tags of a sentence: it is examples that are resampled, not tags.
    """

    predicted: np.ndarray
    actual: np.ndarray
    example: np.ndarray
    examples: int

    def sums(self, columns: np.ndarray) -> np.ndarray:
        """Per-example sums `[N, K]` of a value for each label `[labels, K]`."""
        if len(columns) == self.examples == len(np.unique(self.example)):
            return columns.astype(float)
        totals = np.zeros((self.examples, columns.shape[1]))
        np.add.at(totals, self.example, columns)
        return totals


def labels_of(predictions: Any, references: Any) -> Labels:
    """Read class ids, or lists of tags."""
    first = references[0] if len(references) else 0
    if not isinstance(first, list | tuple | np.ndarray):
        predicted, actual = np.asarray(predictions), np.asarray(references)
        return Labels(predicted, actual, np.arange(len(actual)), len(actual))
    lengths = [len(tags) for tags in references]
    predicted, actual = (np.array([tag for tags in rows for tag in tags]) for rows in (predictions, references))
    return Labels(predicted, actual, np.repeat(np.arange(len(lengths)), lengths), len(lengths))
