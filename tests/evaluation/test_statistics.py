"""Intervals and tests against scipy, and against simulated data whose true effect is known."""

import numpy as np
import pytest
from scipy import stats

from effitrans.evaluation.statistics import (
    Paired,
    Sums,
    bca_interval,
    bootstrap,
    paired_bootstrap,
    percentile_interval,
    ratio_interval,
    resample_counts,
)
from effitrans.tasks.metrics import metric

TRIALS = 1000
MEAN = Sums(lambda sums: sums[..., 0] / sums[..., 1])


def with_ones(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def coverage(intervals, truth):
    # Counts make a lattice on which the truth can be an end point: rounding must not decide.
    return np.mean([low - 1e-9 <= truth <= high + 1e-9 for low, high in intervals])


def test_resampling_draws_every_row_with_n_examples_in_all():
    blocks = list(resample_counts(7, 20, seed=1))
    counts = np.concatenate(blocks)
    assert counts.shape == (20, 7)
    assert (counts.sum(1) == 7).all()
    assert np.array_equal(counts, np.concatenate(list(resample_counts(7, 20, seed=1))))


def test_resampling_in_blocks_equals_one_block(monkeypatch):
    from effitrans.evaluation import statistics

    whole = np.concatenate(list(resample_counts(50, 30, seed=3)))
    monkeypatch.setattr(statistics, "CHUNK_BYTES", 8 * 50 * 7)
    blocks = list(resample_counts(50, 30, seed=3))
    assert len(blocks) == 5
    assert np.array_equal(np.concatenate(blocks), whole)


def test_bca_agrees_with_scipy_on_skewed_data():
    x = np.random.default_rng(0).exponential(size=80)
    ours = bootstrap(MEAN, with_ones(x), seed=0, resamples=20_000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bca_agrees_with_scipy_on_a_correlation():
    rng = np.random.default_rng(1)
    x = rng.normal(size=120)
    y = x + rng.normal(size=120)
    pearson = metric("pearson")
    ours = bootstrap(pearson, pearson.statistics(x, y), seed=0, resamples=10_000)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="BCa",
        rng=0,
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.015)


def simulate(trials, n, draw):
    rng = np.random.default_rng(0)
    return [draw(rng, n) for _ in range(trials)]


def test_bootstrap_covers_a_known_mean():
    samples = simulate(TRIALS, 100, lambda rng, n: rng.gamma(4.0, size=n))
    intervals = [bootstrap(MEAN, with_ones(x), seed=i, resamples=400) for i, x in enumerate(samples)]
    assert 0.93 <= coverage(intervals, 4.0) <= 0.97


def test_bootstrap_covers_a_known_f1():
    # 30 % positives, found with probability 0.8; 10 % of the negatives are taken for positives.
    precision, recall = 0.24 / (0.24 + 0.07), 0.8
    truth = 2 * precision * recall / (precision + recall)

    def draw(rng, n):
        reference = rng.uniform(size=n) < 0.3
        return np.where(reference, rng.uniform(size=n) < 0.8, rng.uniform(size=n) < 0.1), reference

    f1 = metric("f1")
    intervals = [
        bootstrap(f1, f1.statistics(*pair), seed=i, resamples=400) for i, pair in enumerate(simulate(TRIALS, 300, draw))
    ]
    assert 0.93 <= coverage(intervals, truth) <= 0.97


def test_paired_bootstrap_covers_a_known_difference():
    # Both models are right on the same easy examples; the second loses 3 points and wins 1 back elsewhere.
    def draw(rng, n):
        u = rng.uniform(size=n)
        return (u < 0.87) | (u > 0.99), u < 0.90

    intervals, unpaired = [], []
    for i, (model, baseline) in enumerate(simulate(TRIALS, 500, draw)):
        pair = with_ones(model.astype(float)), with_ones(baseline.astype(float))
        intervals.append(paired_bootstrap(MEAN, np.subtract, *pair, seed=i, resamples=400))
        unpaired.append(np.hypot(model.std(), baseline.std()) * 2 * 1.96 / np.sqrt(500))
    assert 0.93 <= coverage(intervals, -0.02) <= 0.97
    widths = [high - low for low, high in intervals]
    assert np.mean(widths) < 0.5 * np.mean(unpaired), "pairing should make the interval much narrower"


def test_paired_bootstrap_of_identical_models_is_exactly_zero():
    right = with_ones((np.random.default_rng(0).uniform(size=50) < 0.8).astype(float))
    assert paired_bootstrap(MEAN, np.subtract, right, right, seed=0, resamples=400) == (0.0, 0.0)
    assert paired_bootstrap(MEAN, np.divide, right, right, seed=0, resamples=400) == (1.0, 1.0)


def test_spearman_and_roc_auc_intervals_cover():
    spearman, auc = metric("spearman"), metric("roc_auc")
    rho, shift, n = 0.7, 1.0, 150
    truth_rho = 6 / np.pi * np.arcsin(rho / 2)
    truth_auc = stats.norm.cdf(shift / np.sqrt(2))
    correlations, areas = [], []
    rng = np.random.default_rng(0)
    for i in range(200):
        x = rng.normal(size=n)
        y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n)
        correlations.append(bootstrap(spearman, spearman.statistics(x, y), seed=i, resamples=400))
        label = np.arange(n) % 2
        score = rng.normal(size=n) + shift * label
        statistics = auc.statistics(np.stack([np.zeros(n), score], axis=1), label)
        areas.append(bootstrap(auc, statistics, seed=i, resamples=400))
    assert 0.90 <= coverage(correlations, truth_rho) <= 0.99
    assert 0.90 <= coverage(areas, truth_auc) <= 0.99


def test_intervals_are_null_where_they_would_mean_nothing():
    assert bootstrap(MEAN, with_ones(np.array([1.0])), seed=0, resamples=400) is None
    assert percentile_interval(np.array([np.nan] * 20 + [1.0] * 80)) is None


def test_bca_of_equal_values_is_that_value():
    assert bca_interval(2.0, np.full(100, 2.0), np.full(10, 2.0)) == (2.0, 2.0)


def test_paired_estimator_without_a_jackknife_has_none():
    spearman = metric("spearman")
    too_many = np.zeros((5000, 4))
    assert Paired(spearman, np.subtract).jackknife(too_many) is None


def timings(rng, rounds, noise):
    """Two models of the same speed on a drifting machine."""
    drift = 1 + 0.1 * np.sin(np.arange(rounds) / 3 + rng.uniform(0, 6))
    if noise == "normal":
        error = rng.normal(0, 0.03, (2, rounds))
    elif noise == "heavy-tailed":
        error = 0.03 * rng.standard_t(2, (2, rounds))
    else:
        busy = rng.uniform(size=(2, rounds)) < 0.1
        error = np.abs(rng.normal(0, 0.01, (2, rounds))) + busy * rng.exponential(0.5, (2, rounds))
    return drift * np.exp(error)


@pytest.mark.parametrize("noise", ["normal", "heavy-tailed", "interrupted"])
@pytest.mark.parametrize("rounds", [10, 20, 37])
def test_a_model_against_itself_gives_a_ratio_that_covers_one(noise, rounds):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(TRIALS):
        _, (low, high) = ratio_interval(*timings(rng, rounds, noise))
        covered += low <= 1 <= high
    # The true coverage is at least 95 % whatever the noise; 1,000 trials measure it to within 1.4 points.
    assert covered / TRIALS >= 0.94


def test_ratio_interval_finds_a_real_difference():
    rng = np.random.default_rng(0)
    for _ in range(100):
        model, baseline = timings(rng, 20, "normal")
        ratio, (low, high) = ratio_interval(0.5 * model, baseline)
        assert low <= ratio <= high
        assert low > 0.4
        assert high < 0.6


def test_ratio_interval_of_few_rounds_is_the_whole_range():
    ratio, interval = ratio_interval(np.array([1.0, 2.0, 3.0]), np.ones(3))
    assert ratio == 2.0
    assert interval == (1.0, 3.0)


@pytest.mark.parametrize("rounds", [6, 10, 25, 100])
def test_ratio_interval_uses_the_narrowest_ranks_that_cover(rounds):
    _, (low, high) = ratio_interval(np.arange(rounds) + 1.0, np.ones(rounds))
    rank = int(low) - 1
    assert high == rounds - rank
    assert stats.binom.cdf(rank, rounds, 0.5) <= 0.025 < stats.binom.cdf(rank + 1, rounds, 0.5)
