"""The index of a folder of reports, drawn from their records."""

from pathlib import Path
from urllib.parse import quote

from effitrans import __version__
from effitrans.errors import UsageError
from effitrans.evaluation.comparison import Comparison, compare_records
from effitrans.files import write_text
from effitrans.reporting import format, opening, sources
from effitrans.reporting.markdown import escape
from effitrans.tasks.metrics import describe


def write_index(folder: str | Path) -> Path:
    """Write `README.md` in a folder of reports: a line for each, with what it found and where it was measured.

    Args:
        folder: holds a folder for each report, at any depth, with its `records`.

    Raises:
        UsageError: no such folder, or none in it holds records; records that cannot be read.
    """
    folder = Path(folder)
    studies = sorted(path.parent for path in folder.rglob("records") if any(path.glob("*.json")))
    if not studies:
        raise UsageError(f"{folder} holds no reports: expected {folder}/NAME/records/*.json, at any depth")
    lines = [
        "# Reports",
        "Studies made by the [recipes](../recipes) and the commands of this repository. Each page is drawn from the "
        "records beside it; every figure names its machine, versions and data.",
        "| Report | Task | Result | Best quality | Models | Measured on |\n| --- | --- | --- | --- | ---: | --- |\n"
        + "\n".join(_line(study, folder) for study in studies),
        f"Drawn by effitrans {__version__} (`effitrans report --index`).",
    ]
    write_text(folder / "README.md", "\n\n".join(lines) + "\n")
    return folder / "README.md"


def _line(study: Path, folder: Path) -> str:
    comparison = compare_records(sources.gather([study]))
    first = comparison.records[0]
    page = next((name for name in ("README.md", "report.md") if (study / name).is_file()), "records")
    machines = sorted({record.provenance.device for record in comparison.records})
    name = study.relative_to(folder).as_posix()
    cells = [
        f"[{escape(name)}]({quote(f'{name}/{page}')})",
        escape(f"{first.task.name}, {first.task.split}"),
        escape(opening.lede(comparison)),
        _best(comparison),
        str(len(comparison.records)),
        escape(", ".join(machines)),
    ]
    return "| " + " | ".join(cells) + " |"


def _best(comparison: Comparison) -> str:
    """The best value of the main metric, with its interval and its model."""
    name = comparison.metric
    higher = describe(name).higher_is_better
    best = (max if higher else min)(comparison.records, key=lambda record: record.quality[name].value)
    score = best.quality[name]
    interval = format.quality_interval(name, score.ci95)
    spread = f" ({interval})" if interval else ""
    return f"{escape(describe(name).label)} {format.quality(name, score.value)}{spread}: {escape(best.model)}"
