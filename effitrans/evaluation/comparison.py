"""Put records side by side, where that means something."""

from collections.abc import Sequence
from dataclasses import dataclass

from effitrans.errors import UsageError
from effitrans.evaluation.record import Latency, Record
from effitrans.tasks.metrics import describe

Shape = tuple[int, int | str]
"""Batch size and length of a latency row."""


@dataclass(frozen=True)
class Comparison:
    """Records of one task and one split, in the order they were given."""

    records: tuple[Record, ...]
    metrics: tuple[str, ...]
    """Names of the metrics that every record has; the first is the main one."""
    baseline: Record | None
    """The record that the others are compared with, where it is among them."""
    notes: tuple[str, ...]
    """What a reader of the whole table must know."""

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]


def compare_records(records: Sequence[Record]) -> Comparison:
    """Check that records may stand in one table.

    Records of different machines or thread counts are accepted: quality and size do not depend on them, and each
    latency ratio comes from one run. A note says so.

    Raises:
        UsageError: no record, or records of different tasks, versions, splits, data or metrics, naming the difference.
    """
    if not records:
        raise UsageError("no records to compare: give at least one")
    first = records[0]
    for record in records[1:]:
        for field in ("name", "version", "split", "fingerprint"):
            ours, theirs = getattr(first.task, field), getattr(record.task, field)
            if ours != theirs:
                what = "data (fingerprint)" if field == "fingerprint" else f"task {field}"
                raise UsageError(
                    f"records of different {what} cannot stand in one table: {first.model!r} has {ours!r}, "
                    f"{record.model!r} has {theirs!r}. Evaluate both on the same task, or report them apart."
                )
    metrics = tuple(name for name in first.quality if all(name in record.quality for record in records))
    if not metrics:
        listed = "; ".join(f"{record.model}: {', '.join(record.quality)}" for record in records)
        raise UsageError(f"the records share no metric ({listed}): evaluate them with the same metrics")
    return Comparison(
        records=tuple(records),
        metrics=metrics,
        baseline=_baseline(records),
        notes=tuple(_differences(records)),
    )


def _baseline(records: Sequence[Record]) -> Record | None:
    named = [record.fidelity.baseline for record in records if record.fidelity is not None]
    if not named:
        return None
    name = max(set(named), key=named.count)
    return next((record for record in records if record.model == name), None)


def _differences(records: Sequence[Record]) -> list[str]:
    notes = []
    for field, what in (("device", "machines"), ("threads", "thread counts"), ("dtype", "dtypes")):
        values = sorted({str(getattr(record.provenance, field)) for record in records})
        if len(values) > 1:
            notes.append(
                f"The records come from different {what} ({', '.join(values)}); times in milliseconds do not compare, "
                "ratios to the baseline do, each being from one run."
            )
    baselines = sorted({record.fidelity.baseline for record in records if record.fidelity})
    if len(baselines) > 1:
        notes.append(f"The records were compared with different baselines: {', '.join(baselines)}.")
    return notes


def shapes_of(records: Sequence[Record]) -> list[Shape]:
    """Every (batch, length) that some record was timed at, real data first."""
    found = {(row.batch, row.length) for record in records for row in latencies(record)}
    return sorted(found, key=lambda shape: (shape[1] != "data", shape[0], shape[1] if shape[1] != "data" else 0))


def headline_shapes(records: Sequence[Record]) -> list[Shape]:
    """Up to two shapes that stand for all: real data at the smallest and the largest batch, else the first two timed.

    Shapes at which every record has a figure come before those that only some have.
    """
    timed = [record for record in records if latencies(record)]
    common = [shape for shape in shapes_of(timed) if all(_is_timed(record, shape) for record in timed)]
    shapes = common or shapes_of(timed)
    data = [shape for shape in shapes if shape[1] == "data"]
    return [data[0], data[-1]] if len(data) > 1 else data or shapes[:2]


def headline_shape(records: Sequence[Record]) -> Shape | None:
    """The one shape that stands for all: the last of `headline_shapes`; None if nothing was timed."""
    return (headline_shapes(records) or [None])[-1]


def _is_timed(record: Record, shape: Shape) -> bool:
    row = latency_at(record, shape)
    return row is not None and row.p50_ms is not None


def latencies(record: Record) -> tuple[Latency, ...]:
    """The latency rows of a record; none if nothing was timed."""
    return (record.cost.latency or ()) if record.cost is not None else ()


def is_compiled(record: Record) -> bool:
    """Whether the model was timed compiled by `effitrans.optimize`."""
    return any(row.compiled for row in latencies(record))


def baseline_is_compiled(records: Sequence[Record]) -> bool:
    """Whether the baseline that the speed-ups of the records are about was timed compiled."""
    return any(record.cost is not None and record.cost.baseline_mode == "compiled" for record in records)


def latency_at(record: Record, shape: Shape) -> Latency | None:
    """The row of one shape."""
    return next((row for row in latencies(record) if (row.batch, row.length) == shape), None)


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """Indices of the points (cost, quality) that no other point beats in both, by increasing cost.

    >>> pareto_front([(1.0, 0.8), (2.0, 0.9), (3.0, 0.85)])
    [0, 1]
    """
    sign = 1.0 if higher_is_better else -1.0
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or sign * points[i][1] > sign * points[front[-1]][1]:
            front.append(i)
    return front


def main_metric_higher(comparison: Comparison) -> bool:
    """Whether more of the main metric is better."""
    return describe(comparison.metric).higher_is_better
