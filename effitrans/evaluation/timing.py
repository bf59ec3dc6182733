"""Interleaved timing of models on the same batches, with raw samples kept.

A round times every model on every batch, one after the other and in an order that turns from batch to batch, so
that drift of the machine hits all models alike and cancels in their ratio. Shapes: R rounds, K batches per round.
"""

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from effitrans.evaluation.record import Latency, Timing
from effitrans.evaluation.statistics import ratio_interval

NOISY = 0.05
"""Coefficient of variation above which a row is marked as noisy."""

Batch = Mapping[str, torch.Tensor]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Runner:
    """A model to be timed: what runs a batch, and the batches that it runs."""

    run: Callable[[Any], Any]
    batches: Sequence[Any]


@dataclass(frozen=True)
class Effort:
    """How long to time: until both minimums are met, or `max_seconds` have passed and there are two rounds."""

    warmup: int = 2
    min_repeats: int = 10
    min_seconds: float = 2.0
    max_seconds: float = 60.0
    settle_seconds: float = 0.0
    """Above 0: a model runs all batches of a round, then there is a pause, in which its idle threads stop spinning."""


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Run torch with this many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleave(
    runners: Mapping[Name, Runner],
    effort: Effort = Effort(),
    *,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, np.ndarray]:
    """Time several models in turn.

    Args:
        runners: name -> model and its batches; all have equally many batches.
        effort: warm-up rounds and how long to go on.
        synchronize: waits for the accelerator, so that a sample holds the whole pass.
        clock: seconds.

    Returns:
        name -> seconds `[R, K]`.
    """
    names = list(runners)
    batches = len(runners[names[0]].batches)
    rounds: dict[Name, list[list[float]]] = {name: [] for name in names}

    def one_round(turn: int) -> dict[Name, list[float]]:
        times: dict[Name, list[float]] = {name: [0.0] * batches for name in names}
        for k, name in _turns(names, batches, turn, in_blocks=effort.settle_seconds > 0):
            runner = runners[name]
            if k == 0 and effort.settle_seconds:
                time.sleep(effort.settle_seconds)
            synchronize()
            start = clock()
            runner.run(runner.batches[k])
            synchronize()
            times[name][k] = clock() - start
        return times

    with _no_garbage_collection():
        for turn in range(effort.warmup):
            one_round(turn)
        start, done = clock(), 0
        while True:
            for name, times in one_round(effort.warmup + done).items():
                rounds[name].append(times)
            done += 1
            elapsed = clock() - start
            if done >= effort.min_repeats and elapsed >= effort.min_seconds:
                break
            if done >= 2 and elapsed >= effort.max_seconds:
                break
    return {name: np.array(times) for name, times in rounds.items()}


def _turns(names: Sequence[Name], batches: int, turn: int, in_blocks: bool) -> Iterator[tuple[int, Name]]:
    """Who runs which batch when in a round: batch by batch, or model by model."""
    if in_blocks:
        yield from ((k, name) for name in _order(names, turn) for k in range(batches))
    else:
        yield from ((k, name) for k in range(batches) for name in _order(names, turn + k))


def _order(names: Sequence[Name], turn: int) -> Sequence[Name]:
    """Who begins turns round, and every other time the order is reversed, so that nobody always runs in the caches
    that the same neighbour left warm."""
    shift = turn // 2 % len(names)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if turn % 2 else order


def variation(seconds_RK: np.ndarray) -> float:
    """Coefficient of variation of the time of a round."""
    totals = seconds_RK.sum(1)
    return float(totals.std(ddof=1) / totals.mean()) if len(totals) > 1 else 0.0


def latency_row(samples: Mapping[str, np.ndarray], *, subject: str, baseline: str | None, **fields: Any) -> Latency:
    """The record's row from the samples of one shape.

    Args:
        samples: seconds `[R, K]` of each model, from `interleave`.
        subject: name of the model that the record is about.
        baseline: name of the model that `ratio_to_baseline` is against; it must be among the samples.
        fields: the remaining fields of `Latency` (batch, length, ...).
    """
    own = samples[subject]
    others = {}
    for name, seconds in samples.items():
        if name == subject:
            continue
        ratio, interval = ratio_interval(own.sum(1), seconds.sum(1))
        others[name] = Timing(
            **_percentiles(seconds),
            cv=variation(seconds),
            ratio=ratio,
            ratio_ci95=interval,
            samples_ms=_rounded(seconds),
        )
    against = others.get(baseline) if baseline is not None else None
    return Latency(
        **fields,
        **_percentiles(own),
        cv=variation(own),
        runs=own.size,
        ratio_to_baseline=against.ratio if against else None,
        ratio_ci95=against.ratio_ci95 if against else None,
        others=others,
        samples_ms=_rounded(own),
    )


def _percentiles(seconds_RK: np.ndarray) -> dict[str, Any]:
    p50, p90, p99 = 1000 * np.percentile(seconds_RK, [50, 90, 99])
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)}


def _rounded(seconds_RK: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Milliseconds to a tenth of a microsecond, which keeps the record short."""
    return tuple(tuple(row) for row in np.round(1000 * seconds_RK, 4).tolist())
