"""Measure saved models in a process that was started for it, with nothing left over from what ran before.

The calling process prepares the batches, since it knows the task, and puts them into a temporary folder with a request.
`python -m effitrans.evaluation.worker FOLDER` loads the models one after the other, measures, and writes a finding a
line to its standard output; the two ends share nothing else.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pydantic
import torch
from torch import Tensor

from effitrans.evaluation import shapes
from effitrans.evaluation.config import Cost
from effitrans.evaluation.latency import EvaluatedModel
from effitrans.evaluation.record import Fields
from effitrans.evaluation.speed import Finding

SILENCE_S = 3600.0
"""A process that finds nothing for so long hangs."""

FINDING: pydantic.TypeAdapter[Finding] = pydantic.TypeAdapter(Finding)
"""Reads and writes a line."""

REQUEST = "request.json"


class Saved(Fields):
    """A saved model."""

    name: str
    folder: Path
    device: str

    @classmethod
    def of(cls, subject: EvaluatedModel) -> "Saved":
        """Where a subject is saved; it must be."""
        assert subject.folder is not None
        return cls(name=subject.name, folder=subject.folder.resolve(), device=str(subject.device))


class Request(Fields):
    """What the process is to do."""

    auto_class: str | None
    """Null: the class that was saved."""
    threads: int
    models: dict[str, Saved]
    """The model and, where there is one to be timed beside it, the baseline."""
    cost: Cost
    timed: bool
    """Whether to measure speed too, after load time and memory."""
    compiled: frozenset[str]
    """Which of the models are timed compiled."""
    generates: bool


class ProcessFailed(Exception):
    """The process ended before it was done; what it had found until then is valid."""

    def __init__(self, reason: str, killed: bool):
        super().__init__(reason)
        self.killed = killed
        """By the operating system, which mostly means that memory ran out."""


def measure_fresh(
    request: Request, subjects: Mapping[str, EvaluatedModel], examples: shapes.Batches, *, silence_s: float = SILENCE_S
) -> Iterator[Finding]:
    """Start the process, and pass on what it finds as soon as it does.

    Args:
        request: what to measure.
        subjects: the models as they are loaded here, by the names that the request has for them.
        examples: their batches.
        silence_s: seconds without a finding after which the process is ended.

    Raises:
        ProcessFailed: it ended early, and why.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for role, subject in subjects.items():
            for size in {1, *request.cost.batches}:
                most = request.cost.batches_a_round(size)
                save_batches(folder, role, size, examples.batches(subject.model, subject.processor, size, most))
        (folder / REQUEST).write_text(request.model_dump_json(), encoding="utf-8")
        yield from _findings(folder, request.threads, silence_s)


def save_batches(folder: Path, role: str, size: int, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Write the batches of one size of one model; nothing where there are none."""
    from safetensors.torch import save_file

    tensors = {f"{k}/{name}": t.cpu().contiguous() for k, batch in enumerate(batches) for name, t in batch.items()}
    if tensors:
        save_file(tensors, _batch_file(folder, role, size))


def load_batches(folder: Path, role: str, size: int, device: torch.device) -> list[dict[str, Tensor]]:
    """What `save_batches` wrote, in the same order."""
    from safetensors.torch import load_file

    path = _batch_file(folder, role, size)
    batches: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items() if path.is_file() else ():
        number, _, name = key.partition("/")
        batches.setdefault(int(number), {})[name] = tensor.to(device)
    return [batches[number] for number in sorted(batches)]


def _batch_file(folder: Path, role: str, size: int) -> Path:
    return folder / f"{role}-{size}.safetensors"


def _findings(folder: Path, threads: int, silence_s: float) -> Iterator[Finding]:
    command = [sys.executable, "-m", "effitrans.evaluation.worker", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (folder / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            yield from map(FINDING.validate_json, _lines(process, silence_s))
            code = process.wait()
        finally:
            # An exception here, or a reader that stopped, must not leave it running.
            process.kill()
            process.communicate()
        errors.seek(0)
        if code != 0:
            raise _failure(code, errors)


def _lines(process: "subprocess.Popen[str]", silence_s: float) -> Iterator[str]:
    """Whole lines; the last of a process that was killed may be half of one."""
    assert process.stdout is not None
    while True:
        watchdog = threading.Timer(silence_s, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line.endswith("\n"):
            return
        yield line


def _failure(code: int, errors: Iterable[str]) -> ProcessFailed:
    if code < 0:
        name = signal.Signals(-code).name
        why = ", out of memory or without an answer" if name == "SIGKILL" else ""
        return ProcessFailed(f"ended by {name}{why}", killed=True)
    lines = [line.strip() for line in errors if line.strip()]
    return ProcessFailed(lines[-1] if lines else f"ended with code {code}", killed=False)
