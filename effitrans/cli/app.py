"""What every command shares: logging, consoles, and how an error becomes one message and an exit code."""

import errno
import logging
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from effitrans import __version__
from effitrans.errors import GateMissed, TrainingDiverged, UsageError
from effitrans.files import is_main_process

out = Console(highlight=False, soft_wrap=True, quiet=not is_main_process())
"""Data; of a `torchrun` job the main process prints."""
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else 160)
"""Progress, logs and errors; a log file has no terminal's width to keep to."""


class State:
    """The options given before the command."""

    debug = False
    quiet = False


def version_callback(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


def start() -> None:
    """Set up logging on stderr; called by every command before its heavy imports."""
    level = logging.WARNING if State.quiet or not is_main_process() else logging.INFO
    handler = RichHandler(console=err, show_path=False, show_level=False, log_time_format="%H:%M:%S", markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("effitrans").setLevel(level)
    # It warns about optional kernels whenever something imports it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import warnings

    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        import datasets
    except ImportError:
        return
    datasets.disable_progress_bars()


def guard(app: Callable[..., Any]) -> None:
    """Run the command and turn what it raises into a message on stderr and an exit code."""
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:
            err.print("[yellow]interrupted[/]: finished steps are kept; run the same command with --resume to go on")
        raise
    except GateMissed as error:
        err.print(f"[red]gate missed[/]: {escape(str(error))}")
        sys.exit(3)
    except (UsageError, TrainingDiverged) as error:
        _fail(error, 2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            _fail(error, 1)
        _fail(UsageError("no space left on the device: nothing was written; free some space, then run it again"), 2)
    except Exception as error:
        if not State.debug:
            err.print(f"[red]failed[/]: {escape(type(error).__name__)}: {escape(str(error))}")
            err.print("This looks like a defect in effitrans. --debug (before the command) shows the traceback.")
            sys.exit(1)
        raise


def _fail(error: Exception, code: int) -> None:
    if State.debug:
        err.print_exception()
    err.print(f"[red]error[/]: {escape(str(error))}")
    sys.exit(code)
