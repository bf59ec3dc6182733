"""Run the command line in this process and see what a user would."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def effitrans(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    """`effitrans("inspect", folder)` -> exit code, stdout, stderr."""
    import effitrans.recipes  # noqa: F401 - takes the class itself, before commands get one with brief defaults
    from effitrans import evaluation
    from effitrans.cli import main

    brief = partial(evaluation.Cost, batches=(1,), lengths=("data",), min_repeats=2, min_seconds=0.0, memory=False)
    monkeypatch.setattr(evaluation, "Cost", brief)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["effitrans", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    handler = signal.getsignal(signal.SIGINT)
    yield call
    signal.signal(signal.SIGINT, handler)
