"""The Markdown and CSV twins of the page."""

import csv
import io
import re
from collections.abc import Sequence

from effitrans import __version__
from effitrans.evaluation.comparison import Comparison, latencies
from effitrans.reporting import seeds, tables, view
from effitrans.reporting.view import Cell, Section, Table


def render(comparison: Comparison, title: str, picture: str | None = None, sections: Sequence[Section] = ()) -> str:
    """The page as Markdown.

    Args:
        comparison: the records.
        title: of the page.
        picture: file name of the drawing to show, beside the Markdown file.
        sections: further parts, below the results.
    """
    task = comparison.records[0].task
    reading = (
        "In brackets: 95 % intervals, and under size the share of the baseline's bytes. Speed-ups come from one run in "
        f"which the models took turns on the same batches. {escape(view.how_timed(comparison))}"
    ).rstrip()
    if seeds.place_of(comparison):
        return _study(comparison, title, picture, sections)
    opening = escape(f"Task {task.name}, split {task.split}. {view.lede(comparison)}")
    parts = [f"# {escape(title)}", opening, table(view.headline(comparison)), reading]
    if picture:
        parts.append(f"![Quality against latency and size]({picture})")
    parts += _sections(sections)
    if changes := tables.changes(comparison):
        parts += ["## Against the baseline", table(changes)]
    if latency := tables.latency_table(comparison):
        parts += ["## Latency", table(latency)]
    if generation := tables.generation_table(comparison):
        parts += ["## Generation", table(generation)]
    return "\n\n".join(parts + _ending(comparison)) + "\n"


def _study(comparison: Comparison, title: str, picture: str | None, sections: Sequence[Section]) -> str:
    task = comparison.records[0].task
    opening = escape(f"Task {task.name}, split {task.split}. {seeds.lede(comparison)}")
    parts = [f"# {escape(title)}", opening, table(seeds.table(comparison))]
    parts.append(f"In brackets: 95 % intervals {seeds.INTERVALS}. {escape(view.how_timed(comparison))}".rstrip())
    if picture:
        parts.append(f"![Every variant and seed]({picture})")
    parts += _sections(sections)
    if differences := seeds.all_differences(comparison):
        parts += ["## Each against each (row minus column)", table(differences)]
    return "\n\n".join(parts + _ending(comparison)) + "\n"


def _sections(sections: Sequence[Section]) -> list[str]:
    parts = []
    for section in sections:
        parts.append(f"## {section.title}")
        if section.figures:
            parts += [f"![{section.title}]({section.file}.svg)", " ".join(caption for _, caption in section.figures)]
        for caption, content in section.tables:
            parts += [f"**{caption}**", table(content)]
    return parts


def _ending(comparison: Comparison) -> list[str]:
    """Notes and provenance."""
    parts = []
    if notes := tables.notes(comparison):
        lines = [f"- **{escape(model)}**: {escape(line)}" for model, found in notes for line in found]
        parts += ["## Notes", "\n".join(lines)]
    facts = [f"| {label} | {escape(value)} |" for label, value in tables.provenance(comparison)]
    parts += ["## Provenance", "\n".join(["| | |", "| --- | --- |", *facts])]
    count = len(comparison.records)
    parts.append(f"Drawn by effitrans {__version__} from {count} record{'s' if count != 1 else ''}.")
    return parts


def table(content: Table) -> str:
    """A Markdown table; intervals stand in brackets behind the figure."""
    lines = [
        "| " + " | ".join(escape(column.replace("\n", ", ")) for column in content.columns) + " |",
        "| --- |" + " ---: |" * (len(content.columns) - 1),
    ]
    for index, row in enumerate(content.rows):
        cells = [_cell(cell) for cell in row]
        if index == content.emphasized:
            cells[0] = f"**{cells[0]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = escape(cell.text) + (f" ({escape(cell.detail)})" if cell.detail else "")
    return f"{text} (noisy)" if cell.mark == "noisy" else text


_MEANINGFUL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|^[#+-](?=[# ])|^>")
"""What Markdown reads as more than a character: of underscores those not within a word, some at the start of a line."""


def escape(text: str) -> str:
    """Text that stays text, on one line, anywhere in Markdown."""
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    return _MEANINGFUL.sub(r"\\\g<0>", line.replace("&", "&amp;").replace("<", "&lt;"))


def to_csv(comparison: Comparison) -> str:
    """One line a model and shape with plain numbers, for spreadsheets and plots of one's own."""
    metrics = [f"{name}{suffix}" for name in comparison.metrics for suffix in ("", "_low", "_high")]
    fixed = ["parameters", "nonzero_parameters", "bytes_on_disk", "bits_per_weight", "flops", "peak_memory_bytes"]
    timed = ["batch", "length", "p50_ms", "p90_ms", "p99_ms", "cv", "ratio_to_baseline", "ratio_low", "ratio_high"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", *metrics, *fixed, *timed])
    for record in comparison.records:
        scores = [record.quality[name] for name in comparison.metrics]
        line: list[object] = [record.model]
        for score in scores:
            line += [score.value, *(score.ci95 or (None, None))]
        line += [getattr(record.cost, name) if record.cost else None for name in fixed]
        for row in latencies(record) or (None,):
            if row is None:
                writer.writerow(line + [None] * len(timed))
            else:
                low, high = row.ratio_ci95 or (None, None)
                values = [row.batch, row.length, row.p50_ms, row.p90_ms, row.p99_ms, row.cv]
                writer.writerow([*line, *values, row.ratio_to_baseline, low, high])
    return out.getvalue()
