"""Latency against sequence length, where models were timed at several."""

from collections.abc import Sequence

from effitrans.evaluation.comparison import Comparison, latencies
from effitrans.evaluation.record import Record
from effitrans.reporting.labels import leader, place
from effitrans.reporting.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, axes
from effitrans.reporting.svg import Drawing, text_width

LABELS = 90
"""Width kept free for names at the right."""

Line = list[tuple[int, float]]


def length_plots(comparison: Comparison) -> list[Drawing]:
    """One drawing for each batch size that was timed at two lengths or more."""
    batches = sorted({row.batch for record in comparison.records for row in latencies(record)})
    return [drawing for batch in batches if (drawing := _plot(comparison.records, batch)) is not None]


def _plot(records: Sequence[Record], batch: int) -> Drawing | None:
    lines = [(record, _line(record, batch)) for record in records]
    lines = [(record, line) for record, line in lines if len(line) > 1]
    if not lines:
        return None
    drawing = Drawing(WIDTH, HEIGHT, f"Latency against length, batch {batch}")
    points = [point for _, line in lines for point in line]
    x_axis = Axis(0.0, max(x for x, _ in points), LEFT, WIDTH - RIGHT - LABELS)
    y_axis = Axis(0.0, 1.05 * max(y for _, y in points), HEIGHT - BOTTOM, TOP)
    axes(drawing, x_axis, y_axis, f"Tokens an example, batch {batch}", "Milliseconds (median)")
    ends, names = [], []
    for index, (record, line) in enumerate(lines):
        stroke = "accent" if index == len(lines) - 1 else "muted"
        pixels = [(x_axis(x), y_axis(y)) for x, y in line]
        drawing.path(pixels, stroke)
        for (x, y), (length, milliseconds) in zip(pixels, line, strict=True):
            drawing.circle(x, y, 3, stroke, tip=f"{record.model}, {length} tokens: {milliseconds:.3g} ms")
        ends.append(pixels[-1])
        names.append(record.step.name if record.step else record.model)
    sizes = [(text_width(name, 13), 15.0) for name in names]
    for name, end, label in zip(names, ends, place(ends, sizes, (LEFT, TOP - 8, WIDTH, HEIGHT - BOTTOM)), strict=True):
        if meeting := leader(end, label):
            drawing.line(end[0], end[1], meeting[0], meeting[1], "muted", 0.75)
        drawing.text(label.x, label.y, name, 13, anchor=label.anchor, halo=True)
    return drawing


def _line(record: Record, batch: int) -> Line:
    """Median milliseconds by length at one batch size."""
    return sorted(
        (row.length, row.p50_ms)
        for row in latencies(record)
        if row.batch == batch and isinstance(row.length, int) and row.p50_ms is not None
    )
