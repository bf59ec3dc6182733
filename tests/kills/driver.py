"""Do a job in a process that is killed: before a certain file operation, or after a certain time.

The processes are forked by a server that has imported everything and started no thread, so that a job costs what it
does and no more. What happens to files is seen by an audit hook of the process; effitrans knows nothing of it.
"""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.kills.jobs import do

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.kills.preload"])

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def run_until(name: str, folder: Path, *, operation: int = 0, seconds: float | None = None) -> tuple[bool, int, float]:
    """Do a job and kill it before a file operation, or after some seconds (0 and None: let it come to its end).

    Returns:
        Whether it was killed, the file operations that it did, and the seconds it took.
    """
    count = _context.Value("l", 0, lock=False)
    log = folder.parent / f"{folder.name}.log"
    process = _context.Process(target=_child, args=(name, folder, log, count, operation))
    start = time.monotonic()
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    took = time.monotonic() - start
    assert process.exitcode in (0, -signal.SIGKILL), log.read_text()[-3000:]
    return process.exitcode != 0, count.value, took


def _child(name: str, folder: Path, log: Path, count: Any, last: int) -> None:
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.addaudithook(_hook(count, last, str(folder)))
    try:
        do(name, folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _hook(count: Any, last: int, folder: str) -> Any:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _changes(event, arguments) and os.fspath(arguments[0]).startswith(folder):
            count.value += 1
            if count.value == last:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audited event changes a file or folder named by a string."""
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, str) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in CHANGES and isinstance(arguments[0], str | os.PathLike)
