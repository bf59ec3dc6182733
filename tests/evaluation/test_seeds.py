"""Means and differences over seeds."""

import numpy as np
import pytest
from scipy import stats

from effitrans.evaluation.quality import counted_delta
from effitrans.evaluation.record import Quality, StudyPlace
from effitrans.evaluation.seeds import _paired_reach, difference, quality, retained, spread
from tests.evaluation.records import make_record

TRIALS = 400
N = 400


def seeded(right_N, seed, variant="a"):
    """A record of one seed with these examples right."""
    record = make_record(variant, accuracy=float(right_N.mean()))
    place = StudyPlace(name="study", variant=variant, baseline="b", seed=seed)
    half = 1.96 * float(right_N.std()) / len(right_N) ** 0.5
    score = Quality(value=float(right_N.mean()), ci95=(right_N.mean() - half, right_N.mean() + half), n=len(right_N))
    return record.model_copy(
        update={"right": np.packbits(right_N).tobytes().hex(), "quality": {"accuracy": score}, "study": place}
    )


def test_one_seed_has_the_interval_of_its_examples():
    record = seeded(np.arange(N) % 10 > 0, 0)
    found = quality([record], "accuracy")
    assert found.value == pytest.approx(0.9)
    assert found.ci95 == pytest.approx(record.quality["accuracy"].ci95)


def test_the_interval_of_one_seed_is_as_lopsided_as_that_of_its_examples():
    record = make_record("a", quality={"accuracy": Quality(value=1.0, ci95=(0.963, 1.0), n=100)})
    assert quality([record], "accuracy").ci95 == pytest.approx((0.963, 1.0))


def test_seeds_alone_give_the_t_interval():
    values = [0.1, 0.2, 0.4]
    found = spread(values, None)
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert found.ci95 == pytest.approx(expected)
    assert not found.over_examples


def test_intervals_end_where_fractions_do():
    right = np.arange(N) % 20 > 0
    good, bad = [seeded(right, seed) for seed in (0, 1)], seeded(~right, 2, "b")
    assert quality([*good, bad], "accuracy").ci95 == (0.0, 1.0)
    others = [seeded(right, 0, "b"), seeded(right, 1, "b"), seeded(right, 2, "b")]
    assert difference([*good, bad], others, "accuracy").ci95[0] == -1.0


def test_a_single_value_without_interval_has_none():
    assert spread([0.5], None).ci95 is None


def test_one_seed_differs_from_another_variant_as_two_models_do():
    ours, theirs = np.arange(N) >= 30, np.arange(N) % 40 > 0
    found = difference([seeded(ours, 0)], [seeded(theirs, 0, "b")], "accuracy")
    assert found.ci95 == pytest.approx(counted_delta(ours, theirs).ci95)


def test_equal_predictions_of_every_seed_leave_room_for_a_difference():
    right = np.arange(N) % 3 > 0
    ours, theirs = [[seeded(right, seed, name) for seed in range(3)] for name in "ab"]
    found = difference(ours, theirs, "accuracy")
    assert found.value == 0
    assert found.ci95 == pytest.approx(counted_delta(right, right).ci95)


def test_only_shared_seeds_are_compared():
    right, wrong = np.ones(N, bool), np.zeros(N, bool)
    ours = [seeded(right, seed) for seed in (0, 1)]
    theirs = [seeded(wrong, 0, "b"), seeded(right, 1, "b"), seeded(wrong, 2, "b")]
    assert difference(ours, theirs, "accuracy").seeds == (1.0, 0.0)
    assert difference(ours, theirs[2:], "accuracy") is None


def test_pairing_by_example_narrows_the_interval():
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=N)
    ours, theirs = (
        [seeded(hard + rng.normal(0, 0.02, N) < level, seed, name) for seed in range(3)]
        for level, name in ((0.9, "a"), (0.88, "b"))
    )
    paired = difference(ours, theirs, "accuracy")
    alone = [quality(records, "accuracy").ci95 for records in (ours, theirs)]
    assert paired.over_examples
    assert paired.ci95[1] - paired.ci95[0] < alone[0][1] - alone[0][0]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_noise", [0.0, 0.3])
def test_intervals_of_differences_cover_the_truth(seeds, seed_noise):
    """Both seeds and examples drawn anew: the interval covers at least 93 times in 100."""
    rng = np.random.default_rng(1)
    covered = 0
    # Latent scores: example + seed + both; the truth is the difference over all seeds and examples.
    ours_level, theirs_level = 1.3, 1.1
    noise = (1 + seed_noise**2 + 0.5**2) ** 0.5
    truth = stats.norm.cdf(ours_level / noise) - stats.norm.cdf(theirs_level / noise)
    for _ in range(TRIALS):
        example = rng.normal(size=N)
        groups = [
            [
                seeded(example + seed_noise * rng.normal() + 0.5 * rng.normal(size=N) + level > 0, seed, name)
                for seed in range(seeds)
            ]
            for level, name in ((ours_level, "a"), (theirs_level, "b"))
        ]
        low, high = difference(*groups, "accuracy").ci95
        covered += low <= truth <= high
    assert covered / TRIALS >= 0.93


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("shared", [0.0, 1.0], ids=["seeds-flip-alone", "seeds-flip-alike"])
@pytest.mark.parametrize(("n", "discordant"), [(50, 0.02), (200, 0.005), (872, 0.005), (200, 0.1)])
def test_intervals_of_rare_differences_cover_the_truth(seeds, shared, n, discordant):
    """All flips are losses, on other examples for each seed or on the same ones."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        alone, alike = rng.uniform(size=(seeds, n)), rng.uniform(size=n)
        flips = np.where(rng.uniform(size=n) < shared, alike, alone) < discordant
        low, high = spread(-flips.mean(axis=1), _paired_reach(-flips.astype(float))).ci95
        covered += low <= -discordant <= high
    assert covered / 200 >= 0.91  # 200 trials measure 93 % to within 2 points


def test_retained_needs_a_baseline():
    assert retained([make_record("a")], "accuracy") is None
    assert retained([make_record("a", baseline=("b", 0.8))], "accuracy").value == pytest.approx(0.9 / 0.8)
