"""The page: one self-contained HTML file, with its style, script and drawings inside."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from effitrans import __version__
from effitrans.evaluation.comparison import Comparison
from effitrans.reporting import grids, lengths, opening, pareto, roc, seeds, structure, tables, view, waterfall
from effitrans.reporting.svg import Drawing
from effitrans.tasks.metrics import describe

INTERVALS = {"accuracy": "Wilson’s for accuracy", "exact_match": "Wilson’s for exact match"}
"""Metrics whose interval is not a bootstrap."""


def render(comparison: Comparison, title: str, sections: Sequence[view.Section] = ()) -> str:
    """The page as text."""
    from markupsafe import Markup

    study = seeds.place_of(comparison) is not None
    headline = opening.headline(comparison)
    cells = [cell for row in headline.rows for cell in row]
    context: dict[str, Any] = {
        "title": title,
        "version": __version__,
        "task": comparison.records[0].task,
        "lede": opening.lede(comparison),
        "headline": headline,
        "interval_note": seeds.INTERVALS if study else interval_note(comparison),
        "how_timed": view.how_timed(comparison),
        "timed": any(column.startswith("Speed-up") for column in headline.columns),
        "noisy": any(cell.mark == "noisy" for cell in cells),
        "plots": [
            {"svg": Markup(drawing.svg()), "caption": caption} for drawing, caption in plots(comparison)
        ],  # drawings escape their own text
        "sections": [
            (one, [{"svg": Markup(drawing.svg()), "caption": caption} for drawing, caption in one.figures])
            for one in sections
        ],
        "differences": seeds.all_differences(comparison) if study else None,
        "notes": tables.notes(comparison),
        "provenance": tables.provenance(comparison),
        "count": len(comparison.records),
        **({} if study else _of_single_models(comparison)),
    }
    return _template().render(context)


def _of_single_models(comparison: Comparison) -> dict[str, Any]:
    """The parts that are about one model each, which the page of a study leaves out."""
    from markupsafe import Markup

    return {
        "tiles": view.tiles(comparison),
        "waterfalls": [Markup(drawing.svg()) for drawing in waterfall.waterfalls(comparison)],
        "changes": tables.changes(comparison),
        "flipped": tables.flipped(comparison),
        "classes": [(drawing.title, Markup(drawing.svg())) for drawing in _class_drawings(comparison)],
        "similarity": [(drawing.title, Markup(drawing.svg())) for drawing in _similarity(comparison)],
        "lengths": [Markup(drawing.svg()) for drawing in lengths.length_plots(comparison)],
        "generation": tables.generation_table(comparison),
        "latency": tables.latency_table(comparison),
        "structures": [(names, Markup(drawing.svg())) for names, drawing in structure.drawings(comparison.records)],
    }


def _class_drawings(comparison: Comparison) -> list[Drawing]:
    """What the baseline and the model the page is about confuse, and the ROC of all."""
    shown = [comparison.baseline, view.subject_of(comparison)]
    if shown == [None, None]:
        shown = [comparison.records[-1]]
    found = [grids.confusion_drawing(record.model, record.confusion) for record in shown if record and record.confusion]
    curve = roc.roc_plot(comparison.records)
    return found + ([curve] if curve else [])


def _similarity(comparison: Comparison) -> list[Drawing]:
    found = [grids.similarity_drawing(record) for record in comparison.records]
    return [drawing for drawing in found if drawing is not None]


def plots(comparison: Comparison) -> list[tuple[Any, str]]:
    """The Pareto plots that can be drawn (of a study: every seed), each with a sentence on how to read it."""
    if seeds.place_of(comparison):
        return [(seeds.plot(comparison), "A circle is a seed, the upright bar their mean, the line its 95 % interval.")]
    entry = describe(comparison.metric)
    corner = "upper" if entry.higher_is_better else "lower"
    found = []
    if (drawing := pareto.latency_plot(comparison)) is not None:
        found.append((drawing, f"The {corner} left is best. The line is the front: no model beats these in both."))
    if (drawing := pareto.size_plot(comparison)) is not None:
        hollow = " The hollow point is the baseline." if comparison.baseline else ""
        found.append((drawing, f"Whiskers are 95 % intervals.{hollow}"))
    return found


def interval_note(comparison: Comparison) -> str:
    """How the intervals of this comparison were made."""
    named = [INTERVALS[name] for name in comparison.metrics if name in INTERVALS]
    if len(named) < len(comparison.metrics):
        named.append("bootstrap over examples" + (" for the other metrics" if named else ""))
    return ", ".join(named)


@lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("effitrans.reporting"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
