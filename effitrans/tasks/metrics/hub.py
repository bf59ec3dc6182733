"""`evaluate:NAME`: a metric of the `evaluate` library, from the hub or from a local script.

Such a metric is a Python file that is run. Those that the library's authors keep, which have a plain name, are taken as
they are; any other is run only where `EFFITRANS_TRUST_REMOTE_CODE=1` says so, as a task file may be a stranger's.
"""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from effitrans.errors import UsageError
from effitrans.tasks.metrics.base import ExampleMetric

TRUST = "EFFITRANS_TRUST_REMOTE_CODE"
"""Environment variable that allows metrics whose code is not that of the library's authors; 1 is yes."""


class HubMetric(ExampleMetric):
    """Wraps a loaded `evaluate` module. Its value is recomputed on every resample, so there are fewer of them."""

    resamples = 200

    def __init__(self, name: str):
        import evaluate

        self.name = f"evaluate:{name}"
        if not _is_known(name) and os.environ.get(TRUST) != "1":
            raise UsageError(
                f"metric {self.name!r} would run code of your disk or of somebody's page on the hub: read that code "
                f"and, if you trust it, set {TRUST}=1 in the environment. The built-in metrics need none"
            )
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


def _is_known(name: str) -> bool:
    """Whether it can only mean a metric of the library's authors: a plain name, which no local script bears."""
    return re.fullmatch(r"\w+", name) is not None and not Path(name).exists()
