"""The page of a study: one row a variant, with means, differences and intervals over its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from effitrans.evaluation import seeds
from effitrans.evaluation.comparison import Comparison, headline_shapes, latency_at
from effitrans.evaluation.record import Record, StudyPlace
from effitrans.evaluation.seeds import Spread
from effitrans.reporting import format
from effitrans.reporting.plot import Axis
from effitrans.reporting.svg import Drawing, text_width, ticks
from effitrans.reporting.view import Cell, Table, without_empty_columns
from effitrans.tasks.metrics import describe

INTERVALS = "over seeds and test examples, where both are known; else over seeds"


@dataclass(frozen=True)
class Group:
    """The records of one variant, by seed."""

    name: str
    records: tuple[Record, ...]


def place_of(comparison: Comparison) -> StudyPlace | None:
    """The study that all records belong to, if they do."""
    places = [record.study for record in comparison.records]
    names = {place.name if place else None for place in places}
    return places[0] if len(names) == 1 else None


def groups_of(comparison: Comparison) -> list[Group]:
    """The variants, in the order of their first records."""
    found: dict[str, list[Record]] = {}
    for record in comparison.records:
        found.setdefault(record.study.variant if record.study else record.model, []).append(record)
    return [Group(name, tuple(records)) for name, records in found.items()]


def table(comparison: Comparison) -> Table:
    """One row a variant: quality, what is retained, the difference from the study's baseline, speed, size."""
    place, groups = place_of(comparison), groups_of(comparison)
    against = _baseline(place, groups)
    shapes = headline_shapes(comparison.records)
    columns = ["Variant", *(describe(name).label for name in comparison.metrics), "Retained"]
    columns += [f"Difference\nfrom {against.name}" if against else "Difference"]
    columns += [f"Speed-up\n{format.shape(*shape)}" for shape in shapes] + ["Parameters", "Size"]
    rows = [_row(comparison, group, against, shapes) for group in groups]
    best = _best(comparison, groups)
    return without_empty_columns(Table(columns, rows, groups.index(best) if len(groups) > 1 else None))


def _row(comparison: Comparison, group: Group, against: Group | None, shapes: Sequence) -> list[Cell]:
    count = len(group.records)
    row = [Cell(group.name, f"{count} seed{'s' if count > 1 else ''}", group.name)]
    for name in comparison.metrics:
        found = seeds.quality(group.records, name)
        row.append(Cell(format.quality(name, found.value), format.quality_interval(name, found.ci95), found.value))
    kept = seeds.retained(group.records, comparison.metric)
    row.append(
        Cell(format.percent(kept.value), format.percent_interval(kept.ci95), kept.value)
        if kept
        else Cell(format.MISSING)
    )
    row.append(_difference(comparison.metric, group, against))
    for shape in shapes:
        rows = [latency_at(record, shape) for record in group.records]
        ratios = sorted(row.ratio_to_baseline for row in rows if row and row.ratio_to_baseline)
        middle = ratios[len(ratios) // 2] if ratios else None
        extent = format.speedup_interval((ratios[0], ratios[-1])) if len(ratios) > 1 else ""
        row.append(Cell(format.speedup(middle), extent, 1 / middle if middle else None))
    costs = [record.cost for record in group.records]
    for field, unit in (("parameters", ""), ("bytes_on_disk", "B")):
        values = [value for cost in costs if cost and (value := getattr(cost, field)) is not None]
        mean = sum(values) / len(values) if values else None
        row.append(Cell(format.scaled(mean, unit), "", mean))
    return row


def _difference(metric: str, group: Group, against: Group | None) -> Cell:
    if against is None:
        return Cell(format.MISSING)
    if group is against:
        return Cell("baseline", "", 0.0)
    found = seeds.difference(group.records, against.records, metric)
    if found is None:
        return Cell(format.MISSING)
    real = found.ci95 is not None and not found.ci95[0] <= 0 <= found.ci95[1]
    interval = format.quality_interval(metric, found.ci95, sign=True)
    return Cell(format.quality(metric, found.value, sign=True), interval, found.value, "real" if real else "")


def _baseline(place: StudyPlace | None, groups: Sequence[Group]) -> Group | None:
    return next((group for group in groups if place and group.name == place.baseline), None)


def _best(comparison: Comparison, groups: Sequence[Group]) -> Group:
    sign = 1 if describe(comparison.metric).higher_is_better else -1
    return max(groups, key=lambda group: sign * seeds.quality(group.records, comparison.metric).value)


def lede(comparison: Comparison) -> str:
    """One sentence that says which variant came out best, and by how much."""
    place, groups = place_of(comparison), groups_of(comparison)
    best, against = _best(comparison, groups), _baseline(place, groups)
    label = describe(comparison.metric).label
    found = seeds.quality(best.records, comparison.metric)
    interval = format.quality_interval(comparison.metric, found.ci95)
    said = f"Best of {len(groups)} variants: {best.name}, {label} {format.quality(comparison.metric, found.value)}"
    said += f" ({interval})" if interval else ""
    other = (
        seeds.difference(best.records, against.records, comparison.metric) if against and best is not against else None
    )
    if against is not None and other is not None:
        said += f", {format.quality(comparison.metric, other.value, sign=True)} against {against.name}"
        interval = format.quality_interval(comparison.metric, other.ci95, sign=True)
        said += f" ({interval})" if interval else ""
    return said + "."


SIZE, ROW, TOP, BOTTOM, PLOT = 13, 26, 10, 44, 340


def plot(comparison: Comparison) -> Drawing:
    """Every seed as a dot, the mean with its interval as a bar; one line a variant."""
    groups, metric = groups_of(comparison), comparison.metric
    entry = describe(metric)
    factor = 100 if entry.percent else 1
    against = _baseline(place_of(comparison), groups)
    found = [(group, seeds.quality(group.records, metric)) for group in groups]
    left = 16 + max(text_width(group.name, SIZE) for group in groups)
    height = TOP + ROW * len(groups) + BOTTOM
    drawing = Drawing(left + PLOT + 20, height, f"{entry.label} of every variant and seed")
    ends = [end for _, one in found for end in _extent(one)]
    low, high = factor * min(ends), factor * max(ends)
    margin = 0.04 * (high - low or 1)
    axis = Axis(low - margin, high + margin, left, left + PLOT)
    floor = TOP + ROW * len(groups)
    for value in ticks(axis.low, axis.high):
        drawing.line(axis(value), TOP, axis(value), floor)
        drawing.text(axis(value), floor + 17, f"{value:g}", 12.5, "muted", "middle")
    drawing.text(left + PLOT / 2, floor + 36, entry.label + (" (%)" if entry.percent else ""), 12.5, "muted", "middle")
    for index, (group, one) in enumerate(found):
        y = TOP + ROW * (index + 0.5)
        stroke = "muted" if group is against else "accent"
        drawing.text(left - 10, y + 4, group.name, SIZE, "ink", "end")
        if one.ci95 is not None:
            drawing.line(axis(factor * one.ci95[0]), y, axis(factor * one.ci95[1]), y, stroke, 1.5)
        drawing.line(axis(factor * one.value), y - 7, axis(factor * one.value), y + 7, stroke, 2.5)
        for record, value in zip(group.records, one.seeds, strict=True):
            seed = record.study.seed if record.study else record.provenance.seed
            tip = f"{group.name}, seed {seed}: {format.quality(metric, value)}"
            drawing.circle(axis(factor * value), y, 3.2, "panel", stroke, tip)
    return drawing


def _extent(one: Spread) -> list[float]:
    return [*one.seeds, *(one.ci95 or ())]


def all_differences(comparison: Comparison) -> Table | None:
    """Every pair of variants: the difference of the main metric with its interval, row minus column."""
    groups = groups_of(comparison)
    if len(groups) < 2:
        return None
    columns = ["Row − column", *(group.name for group in groups[:-1])]
    rows = []
    for index, group in enumerate(groups[1:], 1):
        cells = [_difference(comparison.metric, group, other) for other in groups[:index]]
        rows.append([Cell(group.name, "", group.name), *cells, *[Cell(format.MISSING)] * (len(groups) - 1 - index)])
    return Table(columns, rows)
