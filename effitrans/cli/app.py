"""What every command shares: logging, consoles, and how an error becomes one message and an exit code."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from effitrans import __version__
from effitrans.errors import GateMissed, RunFailed, UsageError
from effitrans.processes import is_main_process

out = Console(highlight=False, emoji=False, soft_wrap=True, quiet=not is_main_process())
"""Data; of a `torchrun` job the main process prints."""
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True, width=None if sys.stderr.isatty() else 160)
"""Progress, logs and errors; a log file has no terminal's width to keep to."""


class State:
    """The options given before the command, and what is known of it."""

    debug = False
    quiet = False
    resumes = False
    """Whether the command has --resume."""
    interrupted = False
    """Whether Ctrl-C came, whatever became of the exception that it raised."""


def can_resume(value: bool) -> bool:
    """Callback of --resume."""
    State.resumes = True
    return value


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
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when datasets is imported, which not all commands do


def guard(app: Callable[..., Any]) -> None:
    """Run the command and turn what it raises into a message on stderr and an exit code."""
    State.interrupted = State.resumes = False
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _leave):  # not where it is ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except (Exception, SystemExit) as error:
        code = 130 if State.interrupted else _report(error)
    else:
        code = 130 if State.interrupted else 0
    if code == 130:
        kept = ": finished steps are kept; run the same command with --resume to go on" if State.resumes else ""
        err.print(f"[yellow]interrupted[/]{kept}")
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, _leave)
    sys.exit(code)


def _interrupt(*_: Any) -> None:
    # Libraries call back from C++ and destructors, where an exception is printed and forgotten.
    State.interrupted = True
    raise KeyboardInterrupt


def _leave(*_: Any) -> None:
    # What the interpreter calls at its end would swallow an exception.
    os._exit(130)


def _report(error: Exception | SystemExit) -> int:
    """Print what happened; the exit code for it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if State.debug and not isinstance(error, GateMissed):
        err.print_exception()
    if isinstance(error, GateMissed):
        err.print(f"[red]gate missed[/]: {escape(str(error))}")
        return 3
    if isinstance(error, UsageError):
        err.print(f"[red]error[/]: {escape(str(error))}")
        return 2
    if reason := _lack(error):
        err.print(f"[red]failed[/]: {reason}")
    elif isinstance(error, RunFailed | OSError):
        err.print(f"[red]failed[/]: {escape(str(error))}")
    else:
        err.print(f"[red]failed[/]: {escape(type(error).__name__)}: {escape(str(error))}")
        err.print("This looks like a defect in effitrans. --debug (before the command) shows the traceback.")
    return 1


_LACKS = {
    "no space left on the device: free some space, then run it again": (
        "No space left on device",
        "Disk quota exceeded",
        "PytorchStreamWriter failed writing",  # torch does not say why
    ),
    "out of memory: choose smaller batches, or a smaller model": ("out of memory", "can't allocate memory"),
}
"""What the machine lacked -> how libraries say so."""


def _lack(error: BaseException) -> str | None:
    """What the machine lacked, if this or an error behind it says so."""
    for each in _chain(error):
        for reason, signs in _LACKS.items():
            if any(sign in str(each) for sign in signs) or (isinstance(each, MemoryError) and "memory" in reason):
                return reason
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
