"""Quality against cost, with intervals and the Pareto front drawn."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from effitrans.evaluation.comparison import Comparison, headline_shape, latency_at, main_metric_higher, pareto_front
from effitrans.evaluation.record import Interval, Record
from effitrans.reporting import format
from effitrans.reporting.labels import Box, leader, place
from effitrans.reporting.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, axes
from effitrans.reporting.svg import Drawing, text_width
from effitrans.tasks.metrics import describe

CROWDED = 8
"""With more points than this, numbers stand beside them and names in a key below."""

KEY_ROW = 18


@dataclass(frozen=True)
class Point:
    """A model in the plane."""

    name: str
    x: float
    y: float
    x_interval: Interval | None
    y_interval: Interval | None
    is_baseline: bool
    tip: str


def latency_plot(comparison: Comparison) -> Drawing | None:
    """Quality against latency: relative to the baseline where every model has that ratio, else in milliseconds.

    None if fewer than two models were timed.
    """
    shape = headline_shape(comparison.records)
    if shape is None:
        return None
    timed = [(record, latency_at(record, shape)) for record in comparison.records]
    rows = [(record, row) for record, row in timed if row is not None and row.p50_ms is not None]
    relative = all(row.ratio_to_baseline is not None or record is comparison.baseline for record, row in rows)
    points = []
    for record, row in rows:
        interval = None
        x = row.p50_ms or 0.0
        if relative:
            x = 1.0 if record is comparison.baseline else row.ratio_to_baseline or 1.0
            interval = None if record is comparison.baseline else row.ratio_ci95
        points.append(_point(comparison, record, x, interval, format.milliseconds(row.p50_ms)))
    where = format.shape(*shape)
    label = f"Latency at {where} (× baseline)" if relative else f"Latency at {where} (ms)"
    return plot(comparison, points, label, "Quality against latency") if len(points) > 1 else None


def size_plot(comparison: Comparison) -> Drawing | None:
    """Quality against bytes on disk (parameters where models are not saved). None if fewer than two are known."""
    costs = [(record, record.cost) for record in comparison.records if record.cost is not None]
    on_disk = all(cost.bytes_on_disk is not None for _, cost in costs)
    points = []
    for record, cost in costs:
        amount = cost.bytes_on_disk if on_disk else cost.parameters
        if amount is not None:
            points.append(_point(comparison, record, amount / 1e6, None, format.scaled(amount, "B" if on_disk else "")))
    label = "Size on disk (MB)" if on_disk else "Parameters (millions)"
    return plot(comparison, points, label, "Quality against size") if len(points) > 1 else None


def _point(comparison: Comparison, record: Record, x: float, interval: Interval | None, cost: str) -> Point:
    score = record.quality[comparison.metric]
    factor = 100 if describe(comparison.metric).percent else 1
    return Point(
        name=record.step.name if record.step else record.model,
        x=x,
        y=factor * score.value,
        x_interval=interval,
        y_interval=(factor * score.ci95[0], factor * score.ci95[1]) if score.ci95 else None,
        is_baseline=record is comparison.baseline,
        tip=f"{record.model}: {format.quality(comparison.metric, score.value)}, {cost}",
    )


def plot(comparison: Comparison, points: Sequence[Point], x_label: str, title: str) -> Drawing:
    """Points in the plane of the cost `x` and the comparison's first metric, with the front."""
    entry = describe(comparison.metric)
    better = main_metric_higher(comparison)
    front = pareto_front([(point.x, point.y) for point in points], better)
    names = ", ".join(points[i].name for i in front)
    crowded = len(points) > CROWDED
    key = KEY_ROW * ((len(points) + 1) // 2) + 8 if crowded else 0
    drawing = Drawing(WIDTH, HEIGHT + key, title, f"{len(points)} models. On the Pareto front: {names}.")
    x_axis = Axis(0.0, 1.08 * max(_ends(p.x, p.x_interval)[1] for p in points), LEFT, WIDTH - RIGHT)
    lows, highs = zip(*(_ends(p.y, p.y_interval) for p in points), strict=True)
    margin = 0.12 * (max(highs) - min(lows) or 1)
    y_axis = Axis(min(lows) - margin, max(highs) + margin, HEIGHT - BOTTOM, TOP)
    axes(drawing, x_axis, y_axis, x_label, f"{entry.label}{' (%)' if entry.percent else ''}")
    taken = _front(drawing, [points[i] for i in front], x_axis, y_axis, better)
    for index, point in enumerate(points):
        x, y = x_axis(point.x), y_axis(point.y)
        stroke = "accent" if index in front else "muted"
        if point.y_interval:
            low, high = y_axis(point.y_interval[0]), y_axis(point.y_interval[1])
            drawing.line(x, low, x, high, stroke, 1)
            taken.append((x - 1, high, x + 1, low))
        if point.x_interval:
            low, high = x_axis(point.x_interval[0]), x_axis(point.x_interval[1])
            drawing.line(low, y, high, y, stroke, 1)
            taken.append((low, y - 1, high, y + 1))
    centres = [(x_axis(point.x), y_axis(point.y)) for point in points]
    shown = [str(i) for i in range(1, len(points) + 1)] if crowded else [point.name for point in points]
    sizes = [(text_width(text, 13), 15.0) for text in shown]
    labels = place(centres, sizes, (LEFT + 2, TOP, WIDTH - RIGHT + 10, HEIGHT - BOTTOM - 2), taken)
    for centre, label in zip(centres, labels, strict=True):
        if end := leader(centre, label):
            drawing.line(*centre, *end, "muted", 0.75)
    for index, (point, (x, y), label) in enumerate(zip(points, centres, labels, strict=True)):
        on_front = index in front
        mark = "accent" if on_front else "muted"
        drawing.circle(x, y, 4.5, "panel" if point.is_baseline else mark, mark, point.tip)
        fill, weight = ("ink", 600) if on_front else ("muted", 400)
        drawing.text(label.x, label.y, shown[index], 13, fill, label.anchor, weight, halo=True)
        if crowded:
            column, row = divmod(index, (len(points) + 1) // 2)
            left, line = column * WIDTH / 2, HEIGHT + KEY_ROW * (row + 0.5)
            drawing.text(left + 16, line, shown[index], 11.5, fill, "end", weight)
            drawing.text(left + 22, line, point.name, 11.5, fill)
    return drawing


def _ends(value: float, interval: Interval | None) -> Interval:
    return interval or (value, value)


def _front(drawing: Drawing, front: Sequence[Point], x_axis: Axis, y_axis: Axis, better: bool) -> list[Box]:
    """Draw the staircase of what can be had, shaded where some model on it is better and no dearer.

    Returns the boxes of its lines, which labels should keep clear of.
    """
    floor = y_axis.low if better else y_axis.high
    steps = [(x_axis(front[0].x), y_axis(floor))]
    for point in front:
        steps += [(x_axis(point.x), steps[-1][1]), (x_axis(point.x), y_axis(point.y))]
    steps.append((x_axis(x_axis.high), steps[-1][1]))
    drawing.area([*steps, (steps[-1][0], steps[0][1])])
    drawing.path(steps, "accent", 1.25)
    return [
        (min(a[0], b[0]) - 2, min(a[1], b[1]) - 2, max(a[0], b[0]) + 2, max(a[1], b[1]) + 2)
        for a, b in itertools.pairwise(steps)
    ]
