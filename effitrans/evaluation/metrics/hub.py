"""`evaluate:NAME`: a metric of the `evaluate` library, from the hub or from a local script."""

from typing import Any

import numpy as np

from effitrans.errors import UsageError
from effitrans.evaluation.metrics.base import EVERY_KIND, ExampleMetric


class HubMetric(ExampleMetric):
    """Wraps a loaded `evaluate` module. Its value is recomputed on every resample, so there are fewer of them."""

    kinds = EVERY_KIND
    resamples = 200

    def __init__(self, name: str):
        import evaluate

        self.name = f"evaluate:{name}"
        try:
            self.module = evaluate.load(name, keep_in_memory=True)
        except (OSError, ImportError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"metric {self.name!r} could not be loaded ({reason}): it needs a network, or the path of a script; "
                "the built-in metrics need neither"
            ) from None
        self._examples: list[tuple[Any, Any]] = []
        super().__init__()

    def arrow_types(self) -> Any:
        return self.module.features

    def statistics(self, *inputs: Any) -> np.ndarray:
        start = len(self._examples)
        self._examples.extend(zip(*inputs, strict=True))
        return np.arange(start, len(self._examples), dtype=float)[:, None]

    def values(self, statistics_NK: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
        rows = statistics_NK[:, 0].astype(int)
        return np.array([self._score(np.repeat(rows, counts.astype(int))) for counts in counts_RN])

    def jackknife(self, statistics_NK: np.ndarray) -> None:
        return None

    def _score(self, rows: np.ndarray) -> float:
        predictions, references = zip(*(self._examples[row] for row in rows), strict=True)
        result = self.module.compute(predictions=list(predictions), references=list(references)) or {}
        numbers = [value for value in result.values() if isinstance(value, int | float | np.number)]
        if len(numbers) != 1:
            raise UsageError(f"metric {self.name!r} returned {sorted(result)}: expected one number")
        return float(numbers[0])
