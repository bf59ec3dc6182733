"""Figures of models trained with several seeds: means and differences, with the noise of seeds and of examples.

A score differs from the one that the method would have for two reasons: another seed gives another model, and other
test examples would have given another score. In a crossed design of seeds and examples the variance of the mean is at
most (the interaction of the two is counted twice; Owen 2007, "The pigeonhole bootstrap")

    Var(mean) = Var_seeds(score) / S  +  Var_examples(score averaged over the seeds) / N.

The interval takes each part with its own quantile of Student's t and adds the squares (Howe 1974, "Approximate
confidence limits on the mean of X + Y"): few seeds leave their variance uncertain, and one quantile for the sum
(Satterthwaite 1946) covers only 92 times in 100 with three seeds. Shapes: S seeds, N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from effitrans.evaluation.metrics import describe
from effitrans.evaluation.record import Interval, Record
from effitrans.evaluation.statistics import CONFIDENCE


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


def spread(values_S: Sequence[float], example_variance: float | None, examples: int = 0) -> Spread:
    """Mean over seeds with its 95 % interval.

    Args:
        values_S: the figure with each seed.
        example_variance: variance of the mean that the choice of test examples brings; null if unknown.
        examples: number of test examples N.

    >>> spread([0.5, 0.5, 0.5], 0.01, 101).ci95   # no noise of seeds: a t interval with N - 1 degrees of freedom
    (0.3016..., 0.6983...)
    """
    from scipy.stats import t

    values = np.asarray(values_S, dtype=np.float64)
    parts = [(float(values.var(ddof=1)) / len(values), len(values) - 1)] if len(values) > 1 else []
    if example_variance is not None and examples > 1:
        parts.append((example_variance, examples - 1))
    interval = None
    if parts:
        half = sum(variance * t.ppf(0.5 + CONFIDENCE / 2, degrees) ** 2 for variance, degrees in parts) ** 0.5
        interval = (float(values.mean() - half), float(values.mean() + half))
    return Spread(float(values.mean()), interval, tuple(values.tolist()), example_variance is not None)


def quality(records: Sequence[Record], metric: str) -> Spread:
    """A metric over the seeds of one variant; the noise of the examples is taken from the intervals of the records."""
    scores = [record.quality[metric] for record in records]
    found = spread([score.value for score in scores], _variance([score.ci95 for score in scores]), scores[0].n)
    return _inside(found, metric, 0.0)


def retained(records: Sequence[Record], metric: str) -> Spread | None:
    """The part of the baseline's quality that is kept, over the seeds; None where there is none."""
    deltas = [
        record.fidelity.delta[metric] for record in records if record.fidelity and metric in record.fidelity.delta
    ]
    kept = [delta.retained for delta in deltas if delta.retained is not None]
    if len(kept) < len(records):
        return None
    return spread(kept, _variance([delta.retained_ci95 for delta in deltas]), records[0].quality[metric].n)


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
    per_example = [
        _right(ours, metric) - _right(theirs, metric) for ours, theirs in pairs if _paired(ours, theirs, metric)
    ]
    if len(per_example) < len(pairs):
        return _inside(spread(values, None), metric, -1.0)
    mean_N = np.mean(per_example, axis=0)
    return _inside(spread(values, float(mean_N.var(ddof=1)) / len(mean_N), len(mean_N)), metric, -1.0)


def _inside(found: Spread, metric: str, lowest: float) -> Spread:
    """The interval of a fraction ends where fractions do, which that of few and very different seeds would cross."""
    if found.ci95 is None or not describe(metric).percent:
        return found
    return replace(found, ci95=(max(found.ci95[0], lowest), min(found.ci95[1], 1.0)))


def _seed(record: Record) -> int:
    return record.study.seed if record.study else record.provenance.seed


def _variance(intervals: Sequence[Interval | None]) -> float | None:
    """Mean squared standard error that 95 % intervals stand for."""
    from scipy.stats import norm

    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return None
    width = 2 * norm.ppf(0.5 + CONFIDENCE / 2)
    return float(np.mean([((high - low) / width) ** 2 for low, high in known]))


def _paired(ours: Record, theirs: Record, metric: str) -> bool:
    return metric in ("accuracy", "exact_match") and ours.right is not None and theirs.right is not None


def _right(record: Record, metric: str) -> np.ndarray:
    """1 for each example that was right, else 0: `[N]`."""
    bits = np.frombuffer(bytes.fromhex(record.right or ""), dtype=np.uint8)
    return np.unpackbits(bits, count=record.quality[metric].n).astype(np.float64)
