"""All that running a model tells about its cost, one finding after the other, so that a late failure costs no figure.

The findings are the same in whichever process they are made: `fresh` makes them in one that was started for it, and
`cost` in the calling one where a model is not saved.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal

import torch

from effitrans.evaluation import shapes
from effitrans.evaluation.config import Cost
from effitrans.evaluation.energy import energy_monitor, joules_an_example
from effitrans.evaluation.generation import measure_generation
from effitrans.evaluation.latency import MODEL, EvaluatedModel, TimedModel, measure_grid, runners_at, timed_models
from effitrans.evaluation.record import Fields, Generation, Latency, Length, Throughput

logger = logging.getLogger(__name__)


class MemoryUse(Fields):
    """What loading and running the model once took; the fields are those of `Costs`."""

    load_s: float
    peak_memory_bytes: int | None
    model_memory_bytes: int | None


class Energy(Fields):
    """What running the model took from the socket; the fields are those of `Costs`."""

    energy_j: float
    energy_shape: tuple[int, Length]


class Process(Fields):
    """Where the model was timed."""

    process: Literal["fresh", "calling"]


Finding = MemoryUse | Process | Latency | Throughput | Generation | Energy | str
"""A part of the costs, or a note."""


def measure_speed(
    subject: EvaluatedModel,
    baseline: EvaluatedModel | None,
    examples: shapes.Batches,
    cost: Cost,
    *,
    compiled: Collection[str],
    generates: bool,
) -> Iterator[Finding]:
    """Time the model in turn with its baseline, at every shape.

    Args:
        subject, baseline: loaded models, in evaluation mode.
        examples: their batches.
        cost: at which shapes, and for how long.
        compiled: which of "model" and "baseline" to time compiled.
        generates: whether models of this kind of task generate.
    """
    timed = timed_models(subject, baseline, cost, compiled)
    yield from measure_grid(timed, examples, cost)
    if generates and cost.contexts:
        yield from measure_generation(subject, baseline, examples, cost)
    yield from _energy(timed[MODEL], examples, cost)


def _energy(each: TimedModel, examples: shapes.Batches, cost: Cost) -> Iterator[Energy]:
    monitor = energy_monitor(each.subject.device)
    if monitor is None:
        return
    batch, length = shape = (cost.batches[-1], cost.lengths[0])
    runners = runners_at({MODEL: each}, examples, cost, batch, length)
    if isinstance(runners, str):
        return
    with torch.inference_mode():
        joules = joules_an_example(monitor, runners[MODEL], batch)
    if joules is not None:
        yield Energy(energy_j=joules, energy_shape=shape)


def logged(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Pass the findings on and say in the log what was timed."""
    for finding in findings:
        if isinstance(finding, Latency):
            figure = f"{finding.p50_ms:.2f} ms" if finding.p50_ms else finding.error
            logger.info("latency at %d x %s: %s", finding.batch, finding.length, figure)
        elif isinstance(finding, Generation):
            logger.info(
                "generation at %d x %s: %.2f ms, then %.2f ms a token",
                *(finding.batch, finding.context, finding.first_token_ms, finding.per_token_ms),
            )
        yield finding


def notes_of(findings: Iterable[Finding]) -> list[str]:
    """The notes among the findings."""
    return [finding for finding in findings if isinstance(finding, str)]


def fields_of(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings as fields of `Costs`; what was not found is left out, and so null."""
    fields: dict[str, Any] = {}
    rows: dict[str, list[Finding]] = {}
    for finding in findings:
        if isinstance(finding, MemoryUse | Process | Energy):
            fields |= dict(finding)
        elif not isinstance(finding, str):
            rows.setdefault(type(finding).__name__.lower(), []).append(finding)
    return fields | {name: tuple(found) for name, found in rows.items()}
