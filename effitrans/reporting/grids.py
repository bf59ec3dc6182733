"""Pictures of matrices: what a classifier confuses, and which layers of two models are alike."""

from collections.abc import Callable, Sequence

from effitrans.evaluation.record import Confusion, Record
from effitrans.reporting.svg import Drawing, text_width

SIZE = 12
SIDE = 260
"""Pixels that a whole matrix takes."""


def confusion_drawing(name: str, confusion: Confusion) -> Drawing:
    """Counts by true class (rows) and predicted class; shaded by the share of the true class."""
    totals = [max(1, sum(row)) for row in confusion.counts]
    shares = [[count / total for count in row] for row, total in zip(confusion.counts, totals, strict=True)]
    wrong = sum(sum(row) - row[i] for i, row in enumerate(confusion.counts))
    return _grid(
        name,
        f"{wrong} of {sum(totals)} examples are taken for another class.",
        shares,
        lambda row, column: str(confusion.counts[row][column]),
        lambda row, column: f"{confusion.labels[row]} taken for {confusion.labels[column]}",
        (confusion.labels, confusion.labels),
        ("True", "Predicted"),
    )


def similarity_drawing(record: Record) -> Drawing | None:
    """CKA of each layer of a model with each of its baseline's. None where it was not computed."""
    if record.fidelity is None or record.fidelity.cka is None:
        return None
    values = record.fidelity.cka
    rows, columns = ([str(i) for i in range(count)] for count in (len(values), len(values[0])))
    return _grid(
        f"{record.model} and {record.fidelity.baseline}",
        "Centred kernel alignment; layer 0 is the embeddings.",
        values,
        lambda row, column: f"{values[row][column]:.2f}".removeprefix("0"),
        lambda row, column: f"layer {row} and the baseline's layer {column}",
        (rows, columns),
        ("Layer", "Baseline's layer"),
    )


def _grid(
    title: str,
    description: str,
    shares: Sequence[Sequence[float]],
    text: Callable[[int, int], str],
    meaning: Callable[[int, int], str],
    names: tuple[Sequence[str], Sequence[str]],
    sides: tuple[str, str],
) -> Drawing:
    """Cells shaded by their share, with their text where there is room for it."""
    rows, columns = names
    cell = SIDE / max(len(rows), len(columns), 4)
    left = 26 + max(text_width(name, SIZE) for name in rows)
    top = 8
    width, height = left + cell * len(columns) + 8, top + cell * len(rows) + 44
    drawing = Drawing(max(width, 240), height, title, description)
    drawing.text(12, top + cell * len(rows) / 2, sides[0], SIZE, "muted", "middle", rotate=-90)
    drawing.text(left + cell * len(columns) / 2, height - 8, sides[1], SIZE, "muted", "middle")
    fits = max(text_width(text(i, j), SIZE) for i in range(len(rows)) for j in range(len(columns))) < cell - 2
    for i, name in enumerate(rows):
        drawing.text(left - 6, top + cell * (i + 0.5) + 4, name, SIZE, "muted", "end")
        for j in range(len(columns)):
            x, y = left + j * cell, top + i * cell
            drawing.cell(x, y, cell - 1, min(1.0, max(0.0, shares[i][j])), f"{meaning(i, j)}: {text(i, j)}")
            if fits:
                drawing.text(x + (cell - 1) / 2, y + cell / 2 + 4, text(i, j), SIZE, "ink", "middle", halo=True)
    for j, name in enumerate(columns):
        if text_width(name, SIZE) < cell + 2:
            drawing.text(left + cell * (j + 0.5), height - 26, name, SIZE, "muted", "middle")
    return drawing
