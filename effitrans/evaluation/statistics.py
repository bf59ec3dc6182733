"""Confidence intervals, vectorised over resamples. Those of right-or-wrong metrics are in `proportions`.

Metrics hand in per-example statistics whose sums decide the value (accuracy: the number right; F1: true
positives, predicted and actual positives; ...), so that a bootstrap over examples is one matrix product
`counts @ statistics`, and two models scored on the same examples share the counts (paired bootstrap).

- Bootstrap with bias correction and acceleration, BCa (Efron 1987); the acceleration comes from the jackknife. It needs
  examples that differ: of few, resamples show too little, and of none it is a single point.
- Latency ratios: median over rounds of the paired ratio, with the distribution-free interval between two order
  statistics (Thompson 1936).

Shapes: N examples, K statistics, R resamples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from effitrans.evaluation.record import Interval

CONFIDENCE = 0.95
CHUNK_BYTES = 64 * 2**20


class Estimator(Protocol):
    """A figure computed from per-example statistics; metrics are estimators."""

    def values(self, statistics_NK: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
        """Values `[R]` when example n counts `counts[r, n]` times."""
        ...

    def jackknife(self, statistics_NK: np.ndarray) -> np.ndarray | None:
        """Values `[N]` with one example left out each time; null where that costs too much."""
        ...


@dataclass(frozen=True)
class Sums:
    """Estimator that is a function of the sums of the statistics: `value(sums[..., K]) -> [...]`."""

    value: Callable[[np.ndarray], np.ndarray]

    def values(self, statistics_NK: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
        return self.value(counts_RN @ statistics_NK)

    def jackknife(self, statistics_NK: np.ndarray) -> np.ndarray | None:
        return self.value(statistics_NK.sum(0) - statistics_NK)


@dataclass(frozen=True)
class Paired:
    """Estimator over two models' statistics side by side `[N, 2K]`: `compare(model's value, baseline's value)`."""

    estimator: Estimator
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def values(self, statistics_NK: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
        model, baseline = np.split(statistics_NK, 2, axis=1)
        return self.compare(self.estimator.values(model, counts_RN), self.estimator.values(baseline, counts_RN))

    def jackknife(self, statistics_NK: np.ndarray) -> np.ndarray | None:
        model, baseline = (self.estimator.jackknife(half) for half in np.split(statistics_NK, 2, axis=1))
        return None if model is None or baseline is None else self.compare(model, baseline)


def resample_counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `[r, N]` float64 blocks that say how often each example was drawn, `resamples` rows in all."""
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, CHUNK_BYTES // (8 * n)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def percentile_interval(resampled_R: np.ndarray, confidence: float = CONFIDENCE) -> Interval | None:
    """Equal-tailed interval of bootstrap values; null if a resample left the metric undefined too often."""
    finite = resampled_R[np.isfinite(resampled_R)]
    if len(finite) < 0.9 * len(resampled_R):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def bca_interval(
    value: float, resampled_R: np.ndarray, jackknife_N: np.ndarray, confidence: float = CONFIDENCE
) -> Interval | None:
    """BCa interval; falls back on the percentiles where its corrections are undefined (all values equal)."""
    from scipy.stats import norm

    finite = resampled_R[np.isfinite(resampled_R)]
    below = (np.sum(finite < value) + np.sum(finite <= value)) / (2 * max(1, len(finite)))
    deviation = jackknife_N.mean() - jackknife_N
    spread = np.sum(deviation**2)
    if len(finite) < 0.9 * len(resampled_R) or not 0 < below < 1 or not np.isfinite(spread) or spread == 0:
        return percentile_interval(resampled_R, confidence)
    bias = norm.ppf(below)
    acceleration = np.sum(deviation**3) / (6 * spread**1.5)
    z = bias + norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    low, high = np.quantile(finite, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def bootstrap(estimator: Estimator, statistics_NK: np.ndarray, seed: int, resamples: int) -> Interval | None:
    """95 % interval over examples: BCa, or percentiles where the jackknife is out of reach.

    Null for fewer than two examples, and where the figure is undefined on many resamples (one class missing).
    """
    n = len(statistics_NK)
    if n < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = np.concatenate(
            [estimator.values(statistics_NK, counts) for counts in resample_counts(n, resamples, seed)]
        )
        left_out = estimator.jackknife(statistics_NK)
        value = float(estimator.values(statistics_NK, np.ones((1, n)))[0])
    return percentile_interval(resampled) if left_out is None else bca_interval(value, resampled, left_out)


def paired_bootstrap(
    estimator: Estimator,
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
    model_NK: np.ndarray,
    baseline_NK: np.ndarray,
    seed: int,
    resamples: int,
) -> Interval | None:
    """95 % interval of `compare(model's value, baseline's value)`, both on the same resampled examples.

    Args:
        estimator: the metric.
        compare: `numpy.subtract` for the difference, `numpy.divide` for the part retained.
        model_NK, baseline_NK: statistics of the two models; row n is about the same example in both.
        seed: of the resampling.
        resamples: number of bootstrap resamples.
    """
    return bootstrap(Paired(estimator, compare), np.concatenate([model_NK, baseline_NK], axis=1), seed, resamples)


def ratio_interval(times_R: np.ndarray, baseline_R: np.ndarray) -> tuple[float, Interval]:
    """Median over rounds of time / baseline time, and its 95 % interval.

    The rounds are the units: within a round both models ran one after the other, so that slow drifts of the
    machine cancel. The interval lies between two order statistics and covers the median at least 95 times in
    100 whatever the noise looks like; timing noise is far from normal, and a bootstrap of the median of few rounds
    covers less. With fewer than six rounds no such pair exists and the interval is the whole range.

    Args:
        times_R, baseline_R: time of each round, any unit.

    >>> ratio_interval(np.full(10, 1.0), np.full(10, 4.0))
    (0.25, (0.25, 0.25))
    """
    ratio_R = np.sort(np.asarray(times_R, dtype=np.float64) / np.asarray(baseline_R, dtype=np.float64))
    rank = _lower_rank(len(ratio_R))
    return float(np.median(ratio_R)), (float(ratio_R[rank]), float(ratio_R[len(ratio_R) - 1 - rank]))


@lru_cache(maxsize=1024)
def _lower_rank(rounds: int) -> int:
    """Largest rank (from 0) at which a sample's value lies above its median at most 2.5 % of the time."""
    from scipy.stats import binom

    tail = (1 - CONFIDENCE) / 2
    rank = int(binom.ppf(tail, rounds, 0.5))
    return max(rank if binom.cdf(rank, rounds, 0.5) <= tail else rank - 1, 0)
