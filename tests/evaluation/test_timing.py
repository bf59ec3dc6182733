"""Interleaved timing, on a clock that the test moves."""

import gc
import itertools
import time
from collections import Counter

import numpy as np
import pytest
import torch

from effitrans.evaluation.timing import Effort, Runner, interleave, latency_row, pinned_threads, variation


class Clock:
    """Time passes only when a model runs."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def model(self, name, seconds):
        def run(batch):
            self.calls.append((name, batch))
            self.now += seconds * batch

        return run


def test_every_model_runs_every_batch_once_a_round_in_a_turning_order():
    clock = Clock()
    runners = {"a": Runner(clock.model("a", 1.0), [1, 2]), "b": Runner(clock.model("b", 3.0), [1, 2])}
    samples = interleave(runners, Effort(warmup=1, min_repeats=2, min_seconds=0.0), clock=clock)
    assert clock.calls[:4] == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert clock.calls[4:8] == [("b", 1), ("a", 1), ("b", 2), ("a", 2)]
    assert len(clock.calls) == 3 * 4
    assert samples["a"].tolist() == [[1, 2], [1, 2]]
    assert samples["b"].tolist() == [[3, 6], [3, 6]]


def test_everyone_follows_everyone_equally_often():
    clock = Clock()
    runners = {name: Runner(clock.model(name, 1.0), [0]) for name in "abc"}
    interleave(runners, Effort(warmup=0, min_repeats=6, min_seconds=0.0), clock=clock)
    rounds = [[name for name, _ in clock.calls[i : i + 3]] for i in range(0, 18, 3)]
    followed = Counter(pair for names in rounds for pair in itertools.pairwise(names))
    assert set(followed.values()) == {2}
    assert len(followed) == 6
    assert Counter(names[0] for names in rounds) == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("effort", "rounds"),
    [
        (Effort(warmup=0, min_repeats=5, min_seconds=0.0), 5),
        (Effort(warmup=0, min_repeats=2, min_seconds=10.0), 10),
        (Effort(warmup=0, min_repeats=50, min_seconds=0.0, max_seconds=7.0), 7),
        (Effort(warmup=3, min_repeats=5, min_seconds=0.0), 5),
    ],
    ids=["repeats", "seconds", "capped", "warm-up-does-not-count"],
)
def test_both_minimums_are_met_within_the_limit(effort, rounds):
    clock = Clock()
    samples = interleave({"a": Runner(clock.model("a", 1.0), [1])}, effort, clock=clock)
    assert samples["a"].shape == (rounds, 1)


def test_the_accelerator_is_waited_for_inside_each_sample():
    clock = Clock()

    def synchronize():
        clock.now += 0.25

    samples = interleave(
        {"a": Runner(clock.model("a", 1.0), [1])}, Effort(1, 3, 0.0), synchronize=synchronize, clock=clock
    )
    assert samples["a"].tolist() == [[1.25]] * 3


def test_no_garbage_is_collected_while_the_clock_runs():
    seen = []
    interleave({"a": Runner(lambda batch: seen.append(gc.isenabled()), [1])}, Effort(1, 2, 0.0))
    assert not any(seen)
    assert gc.isenabled()


def test_variation_is_of_whole_rounds():
    assert variation(np.array([[1.0, 3.0], [3.0, 1.0]])) == 0
    assert variation(np.array([[1.0], [3.0]])) == pytest.approx(np.sqrt(2) / 2)


def test_the_row_holds_percentiles_ratio_and_raw_samples():
    own = np.array([[0.001], [0.002], [0.003], [0.004], [0.005], [0.006]])
    samples = {"model": own, "baseline": 4 * own, "baseline, compiled": 2 * own}
    row = latency_row(samples, subject="model", baseline="baseline", batch=8, length="data")
    assert row.p50_ms == pytest.approx(3.5)
    assert row.ratio_to_baseline == pytest.approx(0.25)
    assert row.ratio_ci95 == pytest.approx((0.25, 0.25))
    assert row.others["baseline, compiled"].ratio == pytest.approx(0.5)
    assert row.runs == 6
    assert row.samples_ms[2] == (3.0,)
    assert latency_row({"model": own}, subject="model", baseline=None, batch=8, length=16).ratio_to_baseline is None


def test_threads_are_pinned_and_put_back():
    before = torch.get_num_threads()
    with pinned_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_models_that_need_to_settle_take_turns_by_rounds():
    ran = []
    runners = {name: Runner(lambda batch, name=name: ran.append(name + batch), ["0", "1"]) for name in "ab"}
    started = time.perf_counter()
    interleave(runners, Effort(warmup=1, min_repeats=2, min_seconds=0.0, settle_seconds=0.01))
    assert ran == ["a0", "a1", "b0", "b1", "b0", "b1", "a0", "a1", "b0", "b1", "a0", "a1"]
    assert time.perf_counter() - started > 6 * 0.01


@pytest.mark.slow
def test_a_real_model_against_itself_is_not_called_different():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 64) for _ in range(4)]
    first = torch.nn.Sequential(*layers)
    second = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
    second.load_state_dict(first.state_dict())
    batch = torch.randn(16, 64)
    covered = 0
    with torch.inference_mode(), pinned_threads(1):
        for _ in range(100):
            runners = {"model": Runner(first, [batch]), "baseline": Runner(second, [batch])}
            samples = interleave(runners, Effort(warmup=2, min_repeats=20, min_seconds=0.0))
            low, high = latency_row(samples, subject="model", baseline="baseline", batch=16, length="data").ratio_ci95
            covered += low <= 1 <= high
    # Expected 96; below 90 has a chance of one in a thousand where the interval keeps its promise.
    assert covered >= 90
