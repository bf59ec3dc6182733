"""Time and memory of attention operators against length: a table with growth exponents, and plots with log axes."""

import math
from collections.abc import Sequence

from effitrans.evaluation.comparison import compare_records
from effitrans.evaluation.record import Record
from effitrans.evaluation.scaling import LengthCost, exponents
from effitrans.evaluation.seeds import quality
from effitrans.reporting import format, seeds
from effitrans.reporting.format import MISSING, three_digits
from effitrans.reporting.lengths import spread_out
from effitrans.reporting.markdown import table
from effitrans.reporting.pareto import Point, plot
from effitrans.reporting.plot import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axis
from effitrans.reporting.svg import Drawing, beside, text_width
from effitrans.reporting.view import Cell, Section, Table
from effitrans.tasks.metrics import describe

QUANTITIES = {
    "inference_ms": "Inference, ms",
    "training_ms": "Training, ms",
    "inference_bytes": "Inference, MB",
    "training_bytes": "Training, MB",
}
SIZE = 12
STROKES = tuple((colour, dash) for dash in ("", "5 3", "1 3", "9 3 2 3") for colour in ("accent", "loss", "muted"))
"""Colour and dashes of the lines, in turns."""


def scaling_sections(records: Sequence[Record], cells: Sequence[LengthCost]) -> list[Section]:
    """The parts of a study's page that say what its variants cost by length.

    Args:
        records: of the study, whose variants have the names of the operators.
        cells: what was measured.
    """
    found = [Section("Time and memory by length", "lengths", _figures(cells), tuple(scaling_tables(cells)))]
    if (drawing := quality_plot(records, cells)) is not None:
        caption = "Whiskers are 95 % intervals. The upper left is best, and the line the front."
        found.insert(0, Section("Quality against speed", "speed", ((drawing, caption),)))
    return found


def _figures(cells: Sequence[LengthCost]) -> tuple[tuple[Drawing, str], ...]:
    if len({cell.length for cell in cells}) < 2 or (plots := scaling_plots(cells)) is None:
        return ()
    return ((plots, "Logarithmic axes: a straight line is a power of the length, its slope the exponent."),)


def quality_plot(records: Sequence[Record], cells: Sequence[LengthCost]) -> Drawing | None:
    """Each variant's mean quality against the time of its attention at the middle of the lengths; None without two."""
    comparison = compare_records(records)
    place, lengths = seeds.place_of(comparison), sorted({cell.length for cell in cells})
    length = lengths[len(lengths) // 2]
    times = {cell.variant: cell.inference_ms for cell in cells if cell.length == length}
    entry = describe(comparison.metric)
    factor = 100 if entry.percent else 1
    points = []
    for group in seeds.groups_of(comparison):
        score, milliseconds = quality(group.records, comparison.metric), times.get(group.name)
        if milliseconds is None:
            continue
        points.append(
            Point(
                name=group.name,
                x=milliseconds,
                y=factor * score.value,
                x_interval=None,
                y_interval=(factor * score.ci95[0], factor * score.ci95[1]) if score.ci95 else None,
                is_baseline=place is not None and group.name == place.baseline,
                tip=f"{group.name}: {format.quality(comparison.metric, score.value)}, {milliseconds:.3g} ms",
            )
        )
    label = f"Attention of one layer at {length:,} positions (ms)"
    return plot(comparison, points, label, "Quality against speed") if len(points) > 1 else None


def scaling_markdown(cells: Sequence[LengthCost]) -> str:
    """`scaling_tables` as Markdown."""
    return "\n\n".join(f"**{caption}**\n\n{table(content)}" for caption, content in scaling_tables(cells)) + "\n"


def scaling_tables(cells: Sequence[LengthCost]) -> list[tuple[str, Table]]:
    """A table for each quantity: operators downwards, lengths across, the exponent last."""
    lengths = sorted({cell.length for cell in cells})
    slopes = exponents(cells)
    tables = []
    for quantity, title in QUANTITIES.items():
        if all(getattr(cell, quantity) is None for cell in cells):
            continue
        rows = []
        for name, own in slopes.items():
            found = {cell.length: getattr(cell, quantity) for cell in cells if cell.variant == name}
            slope = own[quantity]
            values = [Cell(_value(found.get(length), quantity), sort=found.get(length)) for length in lengths]
            exponent = Cell(MISSING if slope is None else f"{slope:.2f}", sort=slope)
            rows.append([Cell(name, sort=name), *values, exponent])
        columns = ["operator", *(f"{length:,}" for length in lengths), "exponent"]
        tables.append((title, Table(columns, rows)))
    return tables


def scaling_plots(cells: Sequence[LengthCost]) -> Drawing | None:
    """One log-log plot a quantity, in one row; None where nothing was measured."""
    drawings = [_plot(cells, quantity, title) for quantity, title in QUANTITIES.items()]
    drawn = [drawing for drawing in drawings if drawing is not None]
    return beside(drawn) if drawn else None


def _value(value: float | None, quantity: str) -> str:
    if value is None:
        return MISSING
    return three_digits(_shown(value, quantity)) if value > 0 else "0"


def _shown(value: float, quantity: str) -> float:
    return value / 2**20 if quantity.endswith("bytes") else value


def _plot(cells: Sequence[LengthCost], quantity: str, title: str) -> Drawing | None:
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        value = getattr(cell, quantity)
        if value:
            lines.setdefault(cell.variant, []).append((cell.length, _shown(value, quantity)))
    points = [point for line in lines.values() for point in line]
    if len({x for x, _ in points}) < 2:
        return None
    drawing = Drawing(WIDTH, HEIGHT, f"{title} against length, logarithmic axes")
    margin = 24 + max(text_width(name, SIZE) for name in lines)
    x_axis = Axis(*_bounds([x for x, _ in points], 2), LEFT, WIDTH - margin)
    y_axis = Axis(*_bounds([y for _, y in points], 10), HEIGHT - BOTTOM, TOP)
    _log_axes(drawing, x_axis, y_axis, title)
    heights = spread_out([y_axis(math.log(line[-1][1], 10)) for line in lines.values()], SIZE + 2)
    for index, ((name, line), height) in enumerate(zip(lines.items(), heights, strict=True)):
        stroke, dash = STROKES[index % len(STROKES)]
        pixels = [(x_axis(math.log(x, 2)), y_axis(math.log(y, 10))) for x, y in line]
        drawing.path(pixels, stroke, dash=dash)
        for (x, y), (length, value) in zip(pixels, line, strict=True):
            drawing.circle(x, y, 2.5, stroke, tip=f"{name}, {length:,} positions: {value:.3g}")
        drawing.line(pixels[-1][0] + 4, pixels[-1][1], WIDTH - margin + 16, height, stroke, 0.75)
        drawing.text(WIDTH - margin + 19, height + 4, name, SIZE, "ink")
    return drawing


def _bounds(values: Sequence[float], base: int) -> tuple[float, float]:
    """Logarithms of the powers of `base` around the values."""
    low, high = math.floor(math.log(min(values), base)), math.ceil(math.log(max(values), base))
    return float(low), float(max(high, low + 1))


def _log_axes(drawing: Drawing, x_axis: Axis, y_axis: Axis, title: str) -> None:
    for power in range(int(y_axis.low), int(y_axis.high) + 1):
        drawing.line(LEFT, y_axis(power), x_axis.end, y_axis(power))
        drawing.text(LEFT - 8, y_axis(power) + 4, f"{10.0**power:g}", 12, "muted", "end")
    drawing.line(LEFT, HEIGHT - BOTTOM, x_axis.end, HEIGHT - BOTTOM, "muted")
    powers = range(int(x_axis.low), int(x_axis.high) + 1)
    for power in powers[:: math.ceil(len(powers) / 5)]:
        drawing.line(x_axis(power), HEIGHT - BOTTOM, x_axis(power), HEIGHT - BOTTOM + 4, "muted")
        drawing.text(x_axis(power), HEIGHT - BOTTOM + 17, f"{2**power:,}", 12, "muted", "middle")
    drawing.text((LEFT + x_axis.end) / 2, HEIGHT - 8, "Positions", 12.5, "muted", "middle")
    drawing.text(13, (TOP + HEIGHT - BOTTOM) / 2, title, 12.5, "muted", "middle", rotate=-90)
