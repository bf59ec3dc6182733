"""`effitrans report`: draw the page from the records of one or more runs."""

from pathlib import Path
from typing import Annotated

import typer

from effitrans.cli.app import err, start


def command(
    directories: Annotated[list[Path], typer.Argument(help="Run folders, folders of records, or record files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page; a .md twin is written beside it.")] = Path(
        "report.html"
    ),
) -> None:
    """Draw one self-contained HTML page and its Markdown twin from records.

    [bold]Example[/]

      effitrans report runs/quickstart --output report.html
    """
    start()
    from effitrans.reporting import report

    report(directories, output)
    err.print(f"wrote {output} and {output.with_suffix('.md')}")
