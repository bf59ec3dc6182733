"""Run a command in a process of its own, forked by a server that has imported everything, within bounds."""

import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS, MEGABYTES = 60, 2000
"""What a command may take: processor time, which does not depend on what else the machine does, and memory."""
PATIENCE = 10 * SECONDS
"""Seconds after which a command that waits for something is stopped."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.fuzz.preload"])


@dataclass
class Outcome:
    """How a command ended. `code` is negative for a signal; `left` is what lies in its folder that did not before."""

    code: int
    text: str
    seconds: float
    megabytes: float
    left: list[str]


def run(arguments: Sequence[str], folder: Path) -> Outcome:
    """Run `effitrans ARGUMENTS` in a folder, in which `out` stands for what it is asked to make."""
    before = set(os.listdir(folder))
    log, usage = folder.parent / f"{folder.name}.log", _context.Array("d", [0.0, PATIENCE], lock=False)
    process = _context.Process(target=_child, args=(list(arguments), folder, log, usage))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
    text = log.read_text(errors="replace")
    left = sorted(set(os.listdir(folder)) - before)
    megabytes, seconds = usage
    return Outcome(process.exitcode or 0, text, seconds, megabytes, left)


def complaints(outcome: Outcome) -> list[str]:
    """What is wrong with how a command ended; nothing if it ended as documented."""
    wrong = []
    if outcome.code not in (0, 1, 2, 3):
        wrong.append(f"ended with {outcome.code}")
    if "Traceback" in outcome.text or "defect" in outcome.text:
        wrong.append("calls itself a defect")
    if "out of memory" in outcome.text or outcome.megabytes > MEGABYTES:
        wrong.append(f"took {outcome.megabytes:.0f} MB")
    if outcome.seconds > SECONDS:
        wrong.append(f"took {outcome.seconds:.0f} s")
    if outcome.code and not outcome.text.strip():
        wrong.append("says nothing")
    if outcome.code == 2 and outcome.left:
        wrong.append(f"leaves {', '.join(outcome.left)}")
    if any(name.startswith(".out") for name in outcome.left):
        wrong.append(f"leaves {', '.join(outcome.left)}")
    return wrong


def _child(arguments: list[str], folder: Path, log: Path, usage: Any) -> None:
    from effitrans.cli import main

    os.chdir(folder)
    os.environ.update(HOME=str(folder.parent), EFFITRANS_CACHE=str(folder.parent / "cache"))
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * 2**30,) * 2)
    sys.argv = ["effitrans", *arguments]
    code: Any = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        usage[:] = [used.ru_maxrss / 1024, used.ru_utime + used.ru_stime]
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
