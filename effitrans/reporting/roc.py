"""Receiver operating characteristics of binary classifiers, one line a model."""

from collections.abc import Sequence

from effitrans.evaluation.record import Record
from effitrans.reporting.lengths import spread_out
from effitrans.reporting.plot import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axis, axes
from effitrans.reporting.svg import Drawing, text_width

SIZE = 13


def roc_plot(records: Sequence[Record]) -> Drawing | None:
    """The curves of all records that have one; the last is emphasized. None where none has."""
    curves = [(record, record.roc) for record in records if record.roc is not None]
    if not curves:
        return None
    drawing = Drawing(WIDTH, HEIGHT, "Receiver operating characteristic")
    names = [record.step.name if record.step else record.model for record, _ in curves]
    x_axis = Axis(0.0, 1.0, LEFT, WIDTH - 16)
    y_axis = Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    axes(drawing, x_axis, y_axis, "False positive rate", "True positive rate")
    drawing.line(x_axis(0), y_axis(0), x_axis(1), y_axis(1), "muted", 1, "3 4")
    for index, (_, curve) in enumerate(curves):
        points = [(x_axis(x), y_axis(y)) for x, y in zip(curve.x, curve.y, strict=True)]
        drawing.path(points, "accent" if index == len(curves) - 1 else "muted", 1.75 if index == len(curves) - 1 else 1)
    right = WIDTH - 24 - max(text_width(name, SIZE) for name in names)
    heights = spread_out([y_axis(0.3) for _ in names], SIZE + 4)
    for index, (name, height) in enumerate(zip(names, heights, strict=True)):
        stroke = "accent" if index == len(names) - 1 else "muted"
        drawing.line(right - 22, height - 4, right - 6, height - 4, stroke, 2)
        drawing.text(right, height, name, SIZE, "ink", halo=True)
    return drawing
