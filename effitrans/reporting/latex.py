"""The headline table for a paper: a `tabular` in the style of booktabs."""

from effitrans.evaluation.comparison import Comparison
from effitrans.reporting import view
from effitrans.reporting.view import Cell

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "<": r"$<$",
    ">": r"$>$",
}


def render(comparison: Comparison, title: str) -> str:
    """A table environment; it needs `\\usepackage{booktabs}`. Intervals stand small behind their figure."""
    content = view.headline(comparison)
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(title)}. {escape(view.lede(comparison))} In brackets: 95\,\% intervals.}}",
        rf"\begin{{tabular}}{{l{'r' * (len(content.columns) - 1)}}}",
        r"\toprule",
        " & ".join(escape(column.replace("\n", ", ")) for column in content.columns) + r" \\",
        r"\midrule",
    ]
    for index, row in enumerate(content.rows):
        cells = [_cell(cell) for cell in row]
        if index == content.emphasized:
            cells[0] = rf"\textbf{{{cells[0]}}}"
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _cell(cell: Cell) -> str:
    return escape(cell.text) + (rf" {{\small({escape(cell.detail)})}}" if cell.detail else "")


def escape(text: str) -> str:
    """Text in which no character means something to TeX."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(text.splitlines()))
