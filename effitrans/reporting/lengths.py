"""Latency against sequence length, where models were timed at several."""

from collections.abc import Sequence

from effitrans.evaluation.comparison import Comparison, latencies
from effitrans.evaluation.record import Record
from effitrans.reporting.plot import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axis, axes
from effitrans.reporting.svg import Drawing, text_width

SIZE = 13

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
    names = [record.step.name if record.step else record.model for record, _ in lines]
    margin = 22 + max(text_width(name, SIZE) for name in names)
    x_axis = Axis(0.0, max(x for x, _ in points), LEFT, WIDTH - margin)
    y_axis = Axis(0.0, 1.05 * max(y for _, y in points), HEIGHT - BOTTOM, TOP)
    axes(drawing, x_axis, y_axis, f"Tokens an example, batch {batch}", "Milliseconds (median)")
    heights = spread_out([y_axis(line[-1][1]) for _, line in lines], SIZE + 2)
    for index, ((record, line), name, height) in enumerate(zip(lines, names, heights, strict=True)):
        stroke = "accent" if index == len(lines) - 1 else "muted"
        pixels = [(x_axis(x), y_axis(y)) for x, y in line]
        drawing.path(pixels, stroke)
        for (x, y), (length, milliseconds) in zip(pixels, line, strict=True):
            drawing.circle(x, y, 3, stroke, tip=f"{record.model}, {length} tokens: {milliseconds:.3g} ms")
        drawing.line(pixels[-1][0] + 5, pixels[-1][1], WIDTH - margin + 18, height, stroke, 0.75)
        drawing.text(WIDTH - margin + 21, height + 4, name, SIZE, "ink")
    return drawing


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, in the same order from top to bottom and as near to the given ones as can be.

    >>> spread_out([10.0, 11.0, 50.0], 4.0)
    [8.5, 12.5, 50.0]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # Neighbours that are too close form a group, which is centred on the mean of its members.
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _top(groups[-1], heights, gap) < _bottom(groups[-2], heights, gap) + gap:
            last = groups.pop()
            groups[-1] += last
    placed = [0.0] * len(heights)
    for group in groups:
        for position, i in enumerate(group):
            placed[i] = _top(group, heights, gap) + position * gap
    return placed


def _top(group: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return sum(heights[i] for i in group) / len(group) - gap * (len(group) - 1) / 2


def _bottom(group: Sequence[int], heights: Sequence[float], gap: float) -> float:
    return _top(group, heights, gap) + gap * (len(group) - 1)


def _line(record: Record, batch: int) -> Line:
    """Median milliseconds by length at one batch size."""
    return sorted(
        (row.length, row.p50_ms)
        for row in latencies(record)
        if row.batch == batch and isinstance(row.length, int) and row.p50_ms is not None
    )
