"""The further tables: differences from the baseline, latency by shape, provenance, notes."""

from effitrans.evaluation.comparison import Comparison, latencies
from effitrans.evaluation.record import Interval, Latency, Record, Throughput
from effitrans.reporting import format
from effitrans.reporting.view import NOISY, Cell, Table, noise, subject_of, without_empty_columns
from effitrans.tasks.metrics import describe


def changes(comparison: Comparison) -> Table | None:
    """Every metric of every compared model as a difference from the baseline, with tests. None without a baseline."""
    rows = []
    for record in comparison.records:
        if record.fidelity is None:
            continue
        for name, delta in record.fidelity.delta.items():
            rows.append(
                [
                    Cell(record.model, f"against {record.fidelity.baseline}", record.model),
                    Cell(describe(name).label, "", describe(name).label),
                    Cell(
                        format.quality(name, delta.value, sign=True),
                        format.quality_interval(name, delta.ci95, sign=True),
                        delta.value,
                        "" if _covers_zero(delta.ci95) else "real",
                    ),
                    Cell(format.percent(delta.retained), format.percent_interval(delta.retained_ci95), delta.retained),
                    Cell(format.MISSING if delta.p_value is None else p_value(delta.p_value), "", delta.p_value),
                    Cell(format.percent(record.fidelity.agreement), "", record.fidelity.agreement),
                    Cell(_number(record.fidelity.kl), "", record.fidelity.kl),
                    _flips(record),
                ]
            )
    if not rows:
        return None
    columns = ["Model", "Metric", "Difference", "Retained", "McNemar p", "Agreement", "KL (nats)", "Gained / lost"]
    return without_empty_columns(Table(columns, rows))


def _covers_zero(interval: Interval | None) -> bool:
    return interval is None or interval[0] <= 0 <= interval[1]


def _flips(record: Record) -> Cell:
    flips = record.fidelity.flips if record.fidelity else None
    if flips is None:
        return Cell(format.MISSING)
    return Cell(f"{len(flips.gained)} / {len(flips.lost)}", "", len(flips.lost))


def p_value(p: float) -> str:
    """A p-value: 0.21, 0.003, < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"


def _number(value: float | None) -> str:
    return format.MISSING if value is None else f"{value:.3g}"


def flipped(comparison: Comparison) -> Table | None:
    """Examples that the model the page is about got right and the baseline wrong, or the other way round."""
    record = subject_of(comparison)
    if record is None or record.fidelity is None or not record.fidelity.changes:
        return None
    rows = []
    for change in record.fidelity.changes:
        text = " / ".join(part for part in change.inputs if part) or format.MISSING
        how = "lost" if change.baseline == change.reference else "gained"
        cells = [Cell(f"row {change.row}", "", change.row), Cell(how, "", how), Cell(text, mark="text")]
        rows.append([*cells, *(Cell(label) for label in (change.reference, change.baseline, change.model))])
    return without_empty_columns(Table(["Example", "Change", "Text", "True", "Baseline", "Model"], rows))


def latency_table(comparison: Comparison) -> Table | None:
    """One row a model and shape. None if nothing was timed."""
    rows = []
    for record in comparison.records:
        rates = {(rate.batch, rate.length): rate for rate in (record.cost.throughput or ())} if record.cost else {}
        for row in latencies(record):
            rows.append(_latency_row(record, row, rates.get((row.batch, row.length))))
    if not rows:
        return None
    columns = ["Model", "Batch × length", "p50", "p90", "p99", "Variation", "Runs", "Speed-up", "Items/s", "Tokens/s"]
    return without_empty_columns(Table(columns, rows))


def _latency_row(record: Record, row: Latency, rate: Throughput | None) -> list[Cell]:
    how = "compiled" if row.compiled else ""
    where = Cell(format.shape(row.batch, row.length), _mean_length(row), f"{row.length!s:>8} {row.batch:>6}")
    name = Cell(record.model, how, record.model)
    if row.error is not None:
        return [name, where, Cell(row.error, mark="error"), *[Cell(format.MISSING)] * 7]
    items, tokens = (rate.items_per_s, rate.tokens_per_s) if rate is not None else (None, None)
    return [
        name,
        where,
        Cell(format.milliseconds(row.p50_ms), "", row.p50_ms),
        Cell(format.milliseconds(row.p90_ms), "", row.p90_ms),
        Cell(format.milliseconds(row.p99_ms), "", row.p99_ms),
        Cell(format.percent(row.cv), "", row.cv, noise(row)),
        Cell(f"{row.runs:,}", "", row.runs),
        _speedup(row.ratio_to_baseline, row.ratio_ci95),
        Cell(format.rate(items), "", items),
        Cell(format.rate(tokens), "", tokens),
    ]


def generation_table(comparison: Comparison) -> Table | None:
    """One row a model and prompt shape. None if nothing was generated."""
    rows = []
    for record in comparison.records:
        for row in (record.cost.generation or ()) if record.cost else ():
            rows.append(
                [
                    Cell(record.model, "", record.model),
                    Cell(format.shape(row.batch, row.context), f"then {row.new_tokens} tokens", str(row.context)),
                    Cell(format.milliseconds(row.first_token_ms), "", row.first_token_ms),
                    _speedup(row.first_token_ratio, row.first_token_ratio_ci95),
                    Cell(format.milliseconds(row.per_token_ms), "", row.per_token_ms),
                    _speedup(row.per_token_ratio, row.per_token_ratio_ci95),
                    Cell(format.rate(row.tokens_per_s), "", row.tokens_per_s),
                    Cell(format.percent(row.cv), "", row.cv, "noisy" if row.cv > NOISY else ""),
                ]
            )
    if not rows:
        return None
    columns = ["Model", "Batch × prompt", "First token", "Speed-up\nfirst token", "Each later token"]
    return without_empty_columns(Table([*columns, "Speed-up\nlater tokens", "Tokens/s", "Variation"], rows))


def _speedup(ratio: float | None, interval: Interval | None) -> Cell:
    return Cell(format.speedup(ratio), format.speedup_interval(interval), 1 / ratio if ratio else None)


def _mean_length(row: Latency) -> str:
    return f"{row.mean_length:.0f} tokens on average" if row.length == "data" and row.mean_length else ""


def provenance(comparison: Comparison) -> list[tuple[str, str]]:
    """What all records share is said once; what differs is said for each."""
    lines = []
    fields = {
        "effitrans": "effitrans", "torch": "torch", "transformers": "transformers", "python": "Python",
        "device": "Device", "threads": "Threads", "dtype": "Dtype", "seed": "Seed", "recipe_sha256": "Recipe (SHA-256)",
        "git_commit": "Code (git)", "dirty": "Uncommitted changes", "created": "Measured",
    }  # fmt: skip
    for name, label in fields.items():
        values = {record.model: _said(getattr(record.provenance, name)) for record in comparison.records}
        distinct = sorted({_said(getattr(record.provenance, name)) for record in comparison.records})
        if name == "seed":
            lines.append((label, ", ".join(distinct)))
        elif name == "created" and len(distinct) > 1:
            lines.append((label, f"{distinct[0]} to {distinct[-1]}"))
        elif len(distinct) == 1:
            lines.append((label, distinct[0]))
        else:
            lines.append((label, "; ".join(f"{model}: {value}" for model, value in values.items())))
    task = comparison.records[0].task
    lines.insert(0, ("Data", f"{task.name} version {task.version}, split {task.split}"))
    lines.insert(1, ("Data fingerprint", task.fingerprint))
    return lines


def _said(value: object) -> str:
    if value is None:
        return format.MISSING
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def notes(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Notes on the whole, then those of each model that has some."""
    found = [("All", list(comparison.notes))] if comparison.notes else []
    by_model: dict[str, list[str]] = {}
    for record in comparison.records:
        lines = by_model.setdefault(record.model, [])
        lines += [line for line in record.notes if line not in lines]
    return found + [(model, lines) for model, lines in by_model.items() if lines]
