"""`effitrans report`: draw the page from the records of one or more runs."""

from pathlib import Path
from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import err, start


def command(
    context: typer.Context,
    directories: Annotated[list[Path], typer.Argument(help="Run folders, folders of records, or record files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page; a .md twin is written beside it.")] = Path(
        "report.html"
    ),
    latex: Annotated[bool, typer.Option("--latex", help="Write the headline table as a .tex file too.")] = False,
    index: Annotated[
        bool, typer.Option("--index", help="Draw the index (README.md) of a folder of reports instead.")
    ] = False,
) -> None:
    """Draw one self-contained HTML page, with Markdown and CSV twins, from records.

    [bold]Examples[/]

      effitrans report runs/quickstart --output report.html

      effitrans report runs/a/record.json runs/b/record.json --latex --output compared.html

      effitrans report --index reports
    """
    start()
    options.refuse_idle(context, index, "with --index", "output", "latex")
    from effitrans.errors import UsageError
    from effitrans.reporting import report, write_index

    if index:
        if len(directories) != 1:
            raise UsageError(f"--index draws the index of one folder of reports, received {len(directories)} folders")
        err.print(f"wrote {write_index(directories[0])}")
        return
    written = report(directories, output, latex=latex)
    err.print("wrote " + ", ".join(map(str, written)))
