"""What the page, the Markdown and the CSV show, worked out once from a comparison of records."""

from dataclasses import dataclass, field

from effitrans.evaluation.comparison import (
    Comparison,
    Shape,
    baseline_is_compiled,
    headline_shapes,
    is_compiled,
    latencies,
    latency_at,
)
from effitrans.evaluation.record import Latency, Record
from effitrans.reporting import format
from effitrans.reporting.svg import Drawing
from effitrans.tasks.metrics import describe

NOISY = 0.05
"""Coefficient of variation above which a row is marked (as `effitrans.evaluation.timing` does)."""

SPARSE = 0.95
"""Below this fraction of weights that are not zero a model counts as sparse; quantization alone gives some zeros."""


@dataclass(frozen=True)
class Cell:
    """A value in a table: how it is read, its interval below it, and the number it sorts by."""

    text: str
    detail: str = ""
    sort: float | str | None = None
    mark: str = ""
    """CSS class: "noisy", "error"."""


@dataclass(frozen=True)
class Table:
    """Column names (a second line says more) and rows of cells; the first column names the row."""

    columns: list[str]
    rows: list[list[Cell]]
    emphasized: int | None = None
    """Index of the row that the page is about."""
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A part of a page that is not drawn from its records."""

    title: str
    file: str
    """Name, without ending, of the picture beside the Markdown file."""
    figures: tuple[tuple[Drawing, str], ...] = ()
    """Drawings, each with a sentence on how to read it."""
    tables: tuple[tuple[str, Table], ...] = ()
    """Tables, each with its caption."""


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    detail: str


def subject_of(comparison: Comparison) -> Record | None:
    """The record the page is about: the last one that was compared with a baseline."""
    compared = [record for record in comparison.records if record.fidelity is not None]
    return compared[-1] if compared else None


def headline(comparison: Comparison) -> Table:
    """One row a model: quality with intervals, what is retained, speed, size."""
    shapes = headline_shapes(comparison.records)
    compared = any(record.fidelity is not None for record in comparison.records)
    columns = ["Model", *(describe(name).label for name in comparison.metrics)]
    kept = f"Retained\n{describe(comparison.metric).label}" if len(comparison.metrics) > 1 else "Retained"
    columns += [kept] if compared else []
    columns += [f"{'Speed-up' if compared else 'Latency'}\n{format.shape(*shape)}" for shape in shapes]
    columns += ["Size", "Parameters", "Bits/weight", "FLOPs", "Peak memory"]
    rows = []
    for record in comparison.records:
        row = [Cell(record.model, _role(comparison, record), record.model)]
        for name in comparison.metrics:
            score = record.quality[name]
            row.append(Cell(format.quality(name, score.value), format.quality_interval(name, score.ci95), score.value))
        if compared:
            row.append(_retained(comparison, record))
        row += [_speed(comparison, record, shape, compared) for shape in shapes]
        rows.append(row + _size_cells(record))
    table = Table(columns, rows, _index(comparison, subject_of(comparison)))
    return without_empty_columns(table)


def _index(comparison: Comparison, record: Record | None) -> int | None:
    return next((i for i, other in enumerate(comparison.records) if other is record), None)


def _role(comparison: Comparison, record: Record) -> str:
    return "baseline" if record is comparison.baseline else ""


def _retained(comparison: Comparison, record: Record) -> Cell:
    if record.fidelity is None or comparison.metric not in record.fidelity.delta:
        return Cell(format.MISSING)
    delta = record.fidelity.delta[comparison.metric]
    return Cell(format.percent(delta.retained), format.percent_interval(delta.retained_ci95), delta.retained)


def _speed(comparison: Comparison, record: Record, shape: Shape, compared: bool) -> Cell:
    row = latency_at(record, shape)
    if row is None:
        return Cell(format.MISSING)
    if row.error is not None:
        return Cell(row.error, mark="error")
    if not compared:
        return Cell(format.milliseconds(row.p50_ms), "", row.p50_ms, noise(row))
    if record is comparison.baseline:
        # The others were mostly compared with it as it is, whether or not its own record timed it compiled.
        eager = None if baseline_is_compiled(comparison.records) else row.others.get("model, eager")
        return Cell("1×", format.milliseconds(eager.p50_ms if eager else row.p50_ms), 1.0)
    if row.ratio_to_baseline is None:
        return Cell(format.MISSING, format.milliseconds(row.p50_ms))
    interval = format.speedup_interval(row.ratio_ci95)
    return Cell(format.speedup(row.ratio_to_baseline), interval, 1 / row.ratio_to_baseline, noise(row))


def how_timed(comparison: Comparison) -> str:
    """A sentence that says which models were timed compiled; empty where nothing was timed."""
    timed = [record for record in comparison.records if latencies(record)]
    if not timed:
        return ""
    modes: dict[str, bool] = {}
    for record in timed:
        if record.fidelity is not None:
            modes[record.fidelity.baseline] = baseline_is_compiled(timed)
    for record in timed:
        modes.setdefault(record.study.variant if record.study else record.model, is_compiled(record))
    compiled = [name for name, is_so in modes.items() if is_so]
    if not compiled:
        return "Models were timed without effitrans.optimize."
    rest = "; all else without it" if len(compiled) < len(modes) else ""
    return f"Timed compiled by effitrans.optimize: {', '.join(compiled)}{rest}."


def noise(row: Latency) -> str:
    """The mark of a figure from a noisy machine."""
    return "noisy" if row.cv is not None and row.cv > NOISY else ""


def _size_cells(record: Record) -> list[Cell]:
    cost = record.cost
    if cost is None:
        return [Cell(format.MISSING)] * 5
    fraction = size_share(record)
    share = format.percent(fraction) if fraction is not None else ""
    sparse = ""
    if cost.nonzero_parameters is not None and cost.parameters and cost.nonzero_parameters < SPARSE * cost.parameters:
        sparse = f"{format.scaled(cost.nonzero_parameters)} not zero"
    bits = format.MISSING if cost.bits_per_weight is None else f"{cost.bits_per_weight:.1f}"
    return [
        Cell(format.scaled(cost.bytes_on_disk, "B"), share, cost.bytes_on_disk),
        Cell(format.scaled(cost.parameters), sparse, cost.parameters),
        Cell(bits, "", cost.bits_per_weight),
        Cell(format.scaled(cost.flops), "", cost.flops),
        Cell(format.scaled(cost.peak_memory_bytes, "B"), "", cost.peak_memory_bytes),
    ]


def size_share(record: Record) -> float | None:
    """Bytes on disk as a fraction of the baseline's."""
    base = record.fidelity.baseline_bytes_on_disk if record.fidelity else None
    return record.cost.bytes_on_disk / base if base and record.cost and record.cost.bytes_on_disk else None


def without_empty_columns(table: Table) -> Table:
    """The table without the columns that no row has a figure for."""
    kept = [i for i in range(len(table.columns)) if any(row[i].text != format.MISSING for row in table.rows)]
    return Table(
        [table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows], table.emphasized, table.notes
    )


def tiles(comparison: Comparison) -> list[Tile]:
    """The few figures that say it all, of the record the page is about."""
    record = subject_of(comparison)
    if record is None or record.fidelity is None:
        return []
    name = comparison.metric
    delta = record.fidelity.delta.get(name)
    score = record.quality[name]
    found = [
        Tile(
            describe(name).label,
            format.quality(name, score.value),
            _joined("95 % CI", format.quality_interval(name, score.ci95)),
        )
    ]
    if delta is not None and delta.retained is not None:
        found.append(
            Tile(
                f"of the {_lower(describe(name).label)} kept",
                format.percent(delta.retained),
                _joined("95 % CI", format.percent_interval(delta.retained_ci95)),
            )
        )
    for shape in headline_shapes(comparison.records):
        row = latency_at(record, shape)
        if row is not None and row.ratio_to_baseline is not None:
            interval = format.speedup_interval(row.ratio_ci95)
            found.append(
                Tile(
                    f"as fast, {format.shape(*shape)}",
                    format.speedup(row.ratio_to_baseline),
                    _joined("95 % CI", interval),
                )
            )
    cost = record.cost
    if cost and cost.bytes_on_disk:
        share = size_share(record)
        found.append(
            Tile(
                "of the bytes" if share else "on disk",
                format.percent(share) if share else format.scaled(cost.bytes_on_disk, "B"),
                format.scaled(cost.bytes_on_disk, "B") if share else format.scaled(cost.parameters) + " parameters",
            )
        )
    return found


def _joined(label: str, interval: str) -> str:
    return f"{label} {interval}" if interval else ""


def lede(comparison: Comparison, name: str | None = None) -> str:
    """One sentence that says what came out; `name` stands for the model's own."""
    record = subject_of(comparison)
    if record is None or record.fidelity is None:
        count = len(comparison.records)
        return f"{count} model{'s' if count > 1 else ''} scored on {comparison.records[0].task.name}."
    parts = []
    delta = record.fidelity.delta.get(comparison.metric)
    label = describe(comparison.metric).label
    if delta is not None and delta.retained is not None:
        parts.append(f"keeps {format.percent(delta.retained)} of the {_lower(label)} of {record.fidelity.baseline}")
    shapes = headline_shapes(comparison.records)
    row = latency_at(record, shapes[-1]) if shapes else None
    if row is not None and row.ratio_to_baseline:
        parts.append(f"runs {format.speedup(row.ratio_to_baseline)} as fast at {format.shape(*shapes[-1])}")
    share = size_share(record)
    if share is not None:
        parts.append(f"takes {format.percent(share)} of its bytes")
    said = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "was scored"
    return f"{name or record.model} {said}."


def _lower(label: str) -> str:
    """Labels that are words go lower-case within a sentence; acronyms and people's names stay."""
    named = label.startswith(("Pearson", "Spearman"))
    return label.lower() if label[1:2].islower() and not named else label
