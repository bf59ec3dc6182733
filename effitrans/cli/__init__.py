"""The command line: one file a command; data on stdout, progress and logs on stderr."""

import re
import sys
from pathlib import Path

import typer

from effitrans.cli import (
    compare,
    distill,
    evaluate,
    export,
    inspect,
    linearize,
    prune,
    quantize,
    recipes,
    report,
    run,
    swap,
    train,
)
from effitrans.cli.app import State, guard, version_callback

app = typer.Typer(
    name="effitrans",
    help="Make a Transformer smaller and faster, and prove it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.command("run")(run.command)
app.command("train")(train.command)
app.command("distill")(distill.command)
app.command("prune", cls=prune.Command)(prune.command)
app.command("quantize", cls=quantize.Command)(quantize.command)
app.command("swap")(swap.command)
app.command("linearize")(linearize.command)
app.command("eval")(evaluate.command)
app.command("export")(export.command)
app.command("report")(report.command)
app.command("inspect")(inspect.command)
app.add_typer(compare.app, name="compare", help="Several models side by side.")
app.add_typer(recipes.app, name="recipes", help="List, show and check recipes.")


@app.callback()
def common(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Only warnings and errors on stderr."),
    version: bool = typer.Option(
        False, "--version", callback=version_callback, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options of every command."""
    State.debug = debug
    State.quiet = quiet


def main() -> None:
    """Entry point of the `effitrans` command. Exit codes: 0 done, 1 failed, 2 wrong usage or bad input,
    3 a quality or budget gate was missed, 130 interrupted."""
    # Shells leave the ~ of --output=~/run and base=~/model as it is.
    sys.argv[1:] = [re.sub(r"(^|=)~/", lambda match: f"{match[1]}{Path.home()}/", text) for text in sys.argv[1:]]
    guard(app)
