"""Figures of models trained with several seeds: means and differences, with the noise of seeds and of examples.

A score differs from the one that the method would have for two reasons: another seed gives another model, and other
test examples would have given another score. In a crossed design of seeds and examples the variance of the mean is at
most (the interaction of the two is counted twice; Owen 2007, "The pigeonhole bootstrap")

    Var(mean) = Var_seeds(score) / S  +  Var_examples(score averaged over the seeds) / N.

The interval takes each part with its own 95 % limits and adds the squares of their distances from the value, below
and above apart (Howe 1974, "Approximate confidence limits on the mean of X + Y"; Zou and Donner 2008, "Construction of
confidence limits about effect measures"). The limits of the seeds are Student's t: few seeds leave their variance
uncertain, and one quantile for the sum (Satterthwaite 1946) covers only 92 times in 100 with three seeds. Those of the
examples are the ones of single models, which hold where few examples differ (see `proportions`); with one seed they
are the interval. Shapes: S seeds, N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from effitrans.evaluation.proportions import difference_interval
from effitrans.evaluation.record import Interval, Record
from effitrans.evaluation.statistics import CONFIDENCE
from effitrans.tasks.metrics import describe


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    value: float
    """Mean over seeds."""
    ci95: Interval | None
    """95 % interval of the mean; null for one seed whose own interval is unknown."""
    seeds: tuple[float, ...]
    """The value of each seed."""
    over_examples: bool = True
    """Whether the interval holds the noise of the test examples too, and not that of the seeds alone."""


def spread(values_S: Sequence[float], reach: tuple[float, float] | None) -> Spread:
    """Mean over seeds with its 95 % interval.

    Args:
        values_S: the figure with each seed.
        reach: how far below and above the mean the limits lie that the choice of test examples brings; null if unknown.

    >>> spread([0.5, 0.5, 0.5], (0.2, 0.1)).ci95   # no noise of seeds
    (0.3, 0.6)
    """
    from scipy.stats import t

    values = np.asarray(values_S, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    interval = None
    if count > 1 or reach is not None:
        seeds = t.ppf(0.5 + CONFIDENCE / 2, count - 1) * float(values.std(ddof=1)) / count**0.5 if count > 1 else 0.0
        below, above = (float(np.hypot(seeds, distance)) for distance in reach or (0.0, 0.0))
        interval = (mean - below, mean + above)
    return Spread(mean, interval, tuple(values.tolist()), reach is not None)


def quality(records: Sequence[Record], metric: str) -> Spread:
    """A metric over the seeds of one variant; the noise of the examples is taken from the intervals of the records."""
    scores = [record.quality[metric] for record in records]
    values = [score.value for score in scores]
    return _inside(spread(values, _reach(values, [score.ci95 for score in scores])), metric, 0.0)


def retained(records: Sequence[Record], metric: str) -> Spread | None:
    """The part of the baseline's quality that is kept, over the seeds; None where there is none."""
    deltas = [
        record.fidelity.delta[metric] for record in records if record.fidelity and metric in record.fidelity.delta
    ]
    kept = [delta.retained for delta in deltas if delta.retained is not None]
    if len(kept) < len(records):
        return None
    return spread(kept, _reach(kept, [delta.retained_ci95 for delta in deltas]))


def difference(records: Sequence[Record], baseline: Sequence[Record], metric: str) -> Spread | None:
    """A metric minus that of another variant, paired by seed and, for right or wrong predictions, by example.

    Returns:
        None if the two share no seed.
    """
    by_seed = {_seed(record): record for record in baseline}
    pairs = [(record, by_seed[_seed(record)]) for record in records if _seed(record) in by_seed]
    if not pairs:
        return None
    values = [ours.quality[metric].value - theirs.quality[metric].value for ours, theirs in pairs]
    reach = None
    if all(_paired(ours, theirs, metric) for ours, theirs in pairs):
        reach = _paired_reach(np.array([_right(ours, metric) - _right(theirs, metric) for ours, theirs in pairs]))
    return _inside(spread(values, reach), metric, -1.0)


def _reach(values_S: Sequence[float], intervals: Sequence[Interval | None]) -> tuple[float, float] | None:
    """Root mean square, over the seeds, of the distances from the value to either end of its interval."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(values_S):
        return None
    below, above = np.sqrt(np.mean((np.asarray(known) - np.asarray(values_S)[:, None]) ** 2, axis=0)).tolist()
    return below, above


def _paired_reach(difference_SN: np.ndarray) -> tuple[float, float]:
    """The same of the mean difference, from the differences of examples: -1, 0 or 1.

    An example counts with its mean over the seeds. Where seeds disagree these are fractions, worth as many whole
    differences as leave the variance of the mean what it is (Kish 1965, "Survey Sampling").
    """
    mean_N = difference_SN.mean(axis=0)
    size = float(np.square(mean_N).sum() / np.abs(mean_N).sum()) if mean_N.any() else 1.0
    gained, lost = (float(np.maximum(sign * mean_N, 0).sum()) for sign in (1, -1))
    low, high = difference_interval(gained / size, lost / size, len(mean_N) / size)
    return float(mean_N.mean() - low), float(high - mean_N.mean())


def _inside(found: Spread, metric: str, lowest: float) -> Spread:
    """The interval of a fraction ends where fractions do, which that of few and very different seeds would cross."""
    if found.ci95 is None or not describe(metric).percent:
        return found
    return replace(found, ci95=(max(found.ci95[0], lowest), min(found.ci95[1], 1.0)))


def _seed(record: Record) -> int:
    return record.study.seed if record.study else record.provenance.seed


def _paired(ours: Record, theirs: Record, metric: str) -> bool:
    return metric in ("accuracy", "exact_match") and ours.right is not None and theirs.right is not None


def _right(record: Record, metric: str) -> np.ndarray:
    """1 for each example that was right, else 0: `[N]`."""
    bits = np.frombuffer(bytes.fromhex(record.right or ""), dtype=np.uint8)
    return np.unpackbits(bits, count=record.quality[metric].n).astype(np.float64)
