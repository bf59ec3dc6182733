"""The scorecard: the headline table in the terminal, as wide as the terminal allows."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from effitrans.evaluation.comparison import Comparison, compare_records
from effitrans.evaluation.record import Record
from effitrans.reporting import opening, seeds, view


def scorecard(records: Sequence[Record]) -> "Scorecard":
    """A table of the records, a line that says what came out, and the notes that qualify it; print it with rich.

    Raises:
        UsageError: records that cannot stand in one table.
    """
    return Scorecard(compare_records(records))


class Scorecard:
    """Renderable; columns that do not fit are left out from the right, where the less important ones stand."""

    def __init__(self, comparison: Comparison):
        self.comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        headline = opening.headline(self.comparison)
        columns = len(headline.columns)
        table = _table(self.comparison, headline, columns)
        free = options.update(max_width=10_000)
        while columns > 2 and Measurement.get(console, free, table).maximum > options.max_width:
            columns -= 1
            table = _table(self.comparison, headline, columns)
        yield table
        if seeds.place_of(self.comparison) or view.subject_of(self.comparison) is not None:
            yield Text(opening.lede(self.comparison) + "\n")
        last = self.comparison.records[-1]
        for note in (*self.comparison.notes, *last.notes):
            yield Text(f"note: {note}", style="dim")


def _table(comparison: Comparison, headline: view.Table, columns: int) -> Table:
    task = comparison.records[0].task
    table = Table(
        title=f"{task.name} · {task.split}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(headline.columns[:columns]):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for index, row in enumerate(headline.rows):
        table.add_row(*map(_cell, row[:columns]), style="bold" if index == headline.emphasized else "")
    return table


def _cell(cell: view.Cell) -> Text:
    styles = {"noisy": "yellow", "error": "red"}
    text = Text(cell.text, style=styles.get(cell.mark, ""))
    if cell.detail:
        text.append(f"\n{cell.detail}", style="dim not bold")
    return text
