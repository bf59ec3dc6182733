"""Send a record to an experiment tracker: its figures as flat scalars, the whole of it as JSON.

Where the trackers put things is decided by their own settings (`TENSORBOARD_LOGGING_DIR`, `WANDB_MODE`,
`WANDB_PROJECT`, `TRACKIO_PROJECT`, ...); the project is "effitrans" where none is set.
"""

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from effitrans.errors import UsageError, unknown_name
from effitrans.evaluation.record import Costs, Fidelity, Record

PROJECT = "effitrans"


def check_tracker(name: str) -> None:
    """Refuse a tracker that cannot be used, before anything was computed for it.

    Raises:
        UsageError: neither "none" nor a tracker, or its package is not installed.
    """
    if name == "none":
        return
    if name not in TRACKERS:
        raise unknown_name("tracker", name, ["none", *TRACKERS])
    if importlib.util.find_spec(name) is None:
        raise UsageError(
            f"tracking {name!r} needs a package that is not installed: "
            f"pip install {name}, or pip install 'effitrans[tracking]' for all trackers"
        )


def track(record: Record, tracker: str, folder: str | Path = "effitrans.tensorboard") -> None:
    """Send a record to a tracker, as a run of its own.

    Args:
        record: what `evaluate` returned.
        tracker: "tensorboard", "wandb" or "trackio" (extra `tracking`); "none" does nothing.
        folder: where TensorBoard's files go, unless `TENSORBOARD_LOGGING_DIR` says so.

    Raises:
        UsageError: see `check_tracker`.

    Example:
        >>> track(evaluate("runs/student", "sst2"), "tensorboard")    # doctest: +SKIP
    """
    check_tracker(tracker)
    if tracker != "none":
        # Standard output is for data, and trackers greet there.
        with contextlib.redirect_stdout(sys.stderr):
            TRACKERS[tracker](record, Path(folder))


def scalars(record: Record) -> dict[str, float]:
    """Every figure of a record under a path of its own: "quality/accuracy", "cost/latency/1xdata/p50_ms".

    What was not measured is left out.
    """
    found: dict[str, float | None] = {}
    for name, quality in record.quality.items():
        found[f"quality/{name}"] = quality.value
        if quality.ci95 is not None:
            found[f"quality/{name}/low"], found[f"quality/{name}/high"] = quality.ci95
    if record.fidelity is not None:
        found |= _fidelity(record.fidelity)
    if record.cost is not None:
        found |= dict(_cost(record.cost))
    return {name: float(value) for name, value in found.items() if value is not None}


def _fidelity(fidelity: Fidelity) -> dict[str, float | None]:
    found = {"fidelity/agreement": fidelity.agreement, "fidelity/kl": fidelity.kl}
    for name, delta in fidelity.delta.items():
        found |= {f"fidelity/{name}/delta": delta.value, f"fidelity/{name}/retained": delta.retained}
    return found


def _cost(cost: Costs) -> Iterator[tuple[str, float | None]]:
    for name, value in cost:
        if isinstance(value, int | float):
            yield f"cost/{name}", value
    for kind, rows in (("latency", cost.latency), ("throughput", cost.throughput), ("generation", cost.generation)):
        for row in rows or ():
            shape = {"batch", "length", "context"}
            at = "x".join(str(value) for name, value in row if name in shape)
            for name, value in row:
                if name not in shape and isinstance(value, int | float) and not isinstance(value, bool):
                    yield f"cost/{kind}/{at}/{name}", value


def _tensorboard(record: Record, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    root = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or folder)
    writer = SummaryWriter(str(root / _plain(f"{record.model}-{record.provenance.created}")))
    for name, value in scalars(record).items():
        writer.add_scalar(name, value, 0)
    writer.add_text("record", f"```json\n{record.to_json(samples=False)}\n```", 0)
    writer.close()


def _wandb(record: Record, folder: Path) -> None:
    import wandb  # type: ignore[import-not-found]

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    settings = wandb.Settings(console="off")
    run = wandb.init(
        project=project, name=record.model, job_type="evaluation", config=_config(record), settings=settings
    )
    run.log(scalars(record))
    with _file(record) as path:
        artifact = wandb.Artifact(f"record-{_plain(record.model)}", type="record")
        artifact.add_file(str(path))
        run.log_artifact(artifact)
        run.finish()


def _trackio(record: Record, folder: Path) -> None:
    import trackio  # type: ignore[import-not-found]

    trackio.init(os.environ.get("TRACKIO_PROJECT", PROJECT), name=record.model, config=_config(record), embed=False)
    trackio.log(scalars(record))
    with _file(record) as path:
        trackio.log_artifact(str(path), name=f"record-{_plain(record.model)}", type="record")
        trackio.finish()


TRACKERS: dict[str, Callable[[Record, Path], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""Name, which is that of the package too -> what sends a record."""


def _config(record: Record) -> dict[str, Any]:
    """What the figures depend on."""
    return {"task": record.task.model_dump(mode="json"), "provenance": record.provenance.model_dump(mode="json")}


@contextlib.contextmanager
def _file(record: Record) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "record.json"
        record.save(path)
        yield path


def _plain(name: str) -> str:
    """A name without the characters that folders and artifacts must not have."""
    return re.sub(r"[^\w.-]+", "-", name)
