"""`report`: from records to a page that can be shown, with its Markdown, CSV and SVG twins."""

from collections.abc import Sequence
from pathlib import Path

from effitrans.errors import UsageError
from effitrans.evaluation.comparison import compare_records
from effitrans.evaluation.record import Record
from effitrans.files import locked, write_text
from effitrans.reporting import html, markdown, sources
from effitrans.reporting import latex as tex
from effitrans.reporting.svg import beside
from effitrans.reporting.view import Section


def report(
    directories_or_records: Sequence[Record | str | Path],
    output: str | Path,
    *,
    title: str | None = None,
    latex: bool = False,
    sections: Sequence[Section] = (),
) -> list[Path]:
    """Write `report.html` and, beside it, `report.md`, `report.csv` and `report.svg` (the picture of the Markdown).

    Args:
        directories_or_records: run folders, folders of records, record files, or records.
        output: the HTML file, or a folder for `report.html`.
        title: of the page. Default: made from the models and the task.
        latex: write the headline table as `report.tex` too.
        sections: further parts of the page, below the results.

    Returns:
        The files that were written.

    Raises:
        UsageError: no records, a record that cannot be read, or records that cannot stand in one table.
    """
    output = Path(output)
    if output.is_dir() or output.suffix == "":
        output = output / "report.html"
    if output.suffix not in (".html", ".htm"):
        raise UsageError(f"output {output}: the report is an HTML file; name it something.html, or name a folder")
    comparison = compare_records(sources.gather(directories_or_records))
    title = title or _title(comparison.records)
    drawings = [drawing for drawing, _ in html.plots(comparison)]
    picture = output.with_suffix(".svg")
    files = {
        output: html.render(comparison, title, sections),
        output.with_suffix(".md"): markdown.render(comparison, title, picture.name if drawings else None, sections),
        output.with_suffix(".csv"): markdown.to_csv(comparison),
    }
    if drawings:
        files[picture] = beside(drawings).svg(standalone=True)
    for section in sections:
        if section.figures:
            drawn = beside([drawing for drawing, _ in section.figures])
            files[output.with_name(f"{section.file}.svg")] = drawn.svg(standalone=True)
    if latex:
        files[output.with_suffix(".tex")] = tex.render(comparison, title)
    with locked(output):
        for path, text in files.items():
            write_text(path, text)
    return list(files)


def _title(records: Sequence[Record]) -> str:
    task, study = records[0].task.name, records[0].study
    if study is not None and all(record.study and record.study.name == study.name for record in records):
        return study.name
    if len(records) == 1:
        return f"{records[0].model} on {task}"
    if all(record.step is not None for record in records):
        return f"{task}, step by step"
    return f"{len(records)} models on {task}"
