"""Intervals of right-or-wrong metrics: published figures, plain likelihoods, and coverage over a grid."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from effitrans.evaluation.proportions import difference_interval, mcnemar, retained_interval, wilson
from effitrans.evaluation.quality import counted_delta

SIZES = (20, 50, 100, 300, 872, 2000)
DISCORDANT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
TRIALS = 10_000
MARGIN = 0.007
"""So many trials measure a coverage of 93 % to within 0.7 points, 2.7 standard errors."""


def grid():
    """Every size and rate of discordance, half of it gains or none, of a good and a mediocre model."""
    for n in SIZES:
        for discordant in DISCORDANT:
            for gains in (0.5, 0.0):
                for both in (0.5, 0.9):
                    if both + discordant <= 1:
                        yield n, both, discordant * gains, discordant * (1 - gains)


CELLS = list(grid())


def drawn(interval):
    """Coverage in each cell of an interval of the counts (both, gained, lost, n), whose truth is given by the rates."""
    rng = np.random.default_rng(0)
    for n, both, gained, lost in CELLS:
        counts = rng.multinomial(n, [both, gained, lost, max(0.0, 1 - both - gained - lost)], size=TRIALS)
        different, times = np.unique(counts[counts[:, 0] > 0, :3], axis=0, return_counts=True)
        low, high, truth = interval(*different.T, n, both, gained, lost)
        # Counts make a lattice on which the truth can be an end point: rounding must not decide.
        yield n * (gained + lost), np.average((low - 1e-9 <= truth) & (truth <= high + 1e-9), weights=times)


def difference_of(both, gained, lost, n, p_both, p_gained, p_lost):
    return *difference_interval(gained, lost, n), p_gained - p_lost


def retained_of(both, gained, lost, n, p_both, p_gained, p_lost):
    return *retained_interval(both, gained, lost), (p_both + p_gained) / (p_both + p_lost)


@pytest.mark.parametrize("interval", [difference_of, retained_of], ids=["difference", "retained"])
def test_coverage_is_93_to_98_percent(interval):
    """At least 93 % in every cell; at most 98 % where at least four discordant examples are expected.

    Fewer than that are often none at all. Then all samples look alike, and the interval covers up to 100 %: it is wide
    because the sample says little, which no interval that holds its level can avoid.
    """
    expected, covered = np.array(list(drawn(interval))).T
    assert covered.min() >= 0.93 - MARGIN
    assert covered[expected >= 4].max() <= 0.98 + MARGIN
    assert 0.94 <= covered[expected >= 10].mean() <= 0.96


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [20, 300, 2000])
def test_wilson_covers_a_known_accuracy(n, p):
    successes = np.arange(n + 1)
    covered = [low <= p <= high for low, high in (wilson(int(k), n) for k in successes)]
    assert 0.93 <= stats.binom.pmf(successes, n, p) @ covered <= 0.985


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_equals_scipy(n, data):
    successes = data.draw(st.integers(0, n))
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_intervals_equal_published_ones():
    """Airway hyper-responsiveness before and after a transplantation (Bentur et al. 2009): 1, 1, 7 and 12 children."""
    assert difference_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert retained_interval(1, 1, 7) == pytest.approx((0.065, 0.907), abs=5e-4)


def most_likely(counts, rates, bounds):
    """The value between `bounds` whose `rates(value)` make the counts most likely."""

    def surprise(value):
        return -sum(k * np.log(max(p, 1e-300)) for k, p in zip(counts, rates(value), strict=True) if k)

    return minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-14}).x


@pytest.mark.parametrize(
    ("both", "gained", "lost", "n"), [(1, 1, 7, 21), (50, 7, 3, 80), (300, 2, 9, 400), (80, 0, 4, 90)]
)
def test_ends_are_where_a_score_test_by_plain_likelihood_turns(both, gained, lost, n):
    z = stats.norm.ppf(0.975)
    for d, sign in zip(difference_interval(gained, lost, n), (1, -1), strict=True):
        q = most_likely(
            (gained, lost, n - gained - lost), lambda q, d=d: (q + d, q, 1 - 2 * q - d), (max(0, -d), (1 - d) / 2)
        )
        assert (gained - lost - n * d) / np.sqrt(n * (2 * q + d * (1 - d))) == pytest.approx(sign * z, abs=1e-4)
    right = (both + gained + lost) / n
    for r, sign in zip(retained_interval(both, gained, lost), (1, -1), strict=True):

        def rates(p, r=r):
            q = right * (1 - r) + r * p
            return right - p - q, p, q

        p = most_likely((both, gained, lost), rates, (max(0, right * (r - 1) / r), right * r / (1 + r)))
        spread = np.sqrt(r * n * (p + rates(p)[2]))
        assert (both + gained - r * (both + lost)) / spread == pytest.approx(sign * z, abs=1e-4)


@given(both=st.integers(0, 300), gained=st.integers(0, 40), lost=st.integers(0, 40), neither=st.integers(0, 100))
def test_p_value_and_intervals_never_disagree(both, gained, lost, neither):
    assume(both + min(gained, lost) > 0)
    outcomes = np.repeat([(True, True), (True, False), (False, True), (False, False)], (both, gained, lost, neither), 0)
    delta = counted_delta(*outcomes.T)
    significant = delta.p_value < 0.05
    assert significant == (not delta.ci95[0] <= 0 <= delta.ci95[1])
    assert significant == (not delta.retained_ci95[0] <= 1 <= delta.retained_ci95[1])
    assert delta.ci95[0] <= delta.value <= delta.ci95[1]
    assert delta.retained_ci95[0] <= delta.retained <= delta.retained_ci95[1]


def test_few_differences_make_no_finding_and_none_leaves_room_for_some():
    right = np.ones(30, bool)
    three_worse = counted_delta(np.arange(30) >= 3, right)
    assert three_worse.ci95[0] < three_worse.value < 0 < three_worse.ci95[1]
    assert three_worse.p_value > 0.05
    same = counted_delta(right, right)
    assert same.p_value == 1
    assert same.ci95[0] < 0 < same.ci95[1]
    assert same.retained_ci95[0] < 1 < same.retained_ci95[1]


@settings(max_examples=30)
@given(gained=st.integers(0, 60), lost=st.integers(0, 60))
def test_intervals_of_swapped_models_are_mirrored(gained, lost):
    low, high = difference_interval(gained, lost, 150)
    assert difference_interval(lost, gained, 150) == pytest.approx((-high, -low))
    low, high = retained_interval(30, gained, lost)
    assert retained_interval(30, lost, gained) == pytest.approx((1 / high, 1 / low))


def test_mcnemar_keeps_its_level_and_finds_a_real_difference():
    rng = np.random.default_rng(0)
    same, different = rng.binomial(80, 0.5, size=2000), rng.binomial(80, 0.3, size=2000)
    assert np.mean([mcnemar(k, 80 - k) < 0.05 for k in same]) <= 0.065
    assert np.mean([mcnemar(k, 80 - k) < 0.05 for k in different]) > 0.9


def test_intervals_end_where_everything_changed():
    assert difference_interval(30, 0, 30)[1] == 1
    assert retained_interval(0, 0, 3)[0] == 0
