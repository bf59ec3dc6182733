"""What an epoch of distillation costs with the teacher's outputs from disk, against the teacher running in every step.

    python benchmarks/teacher_cache.py runs/sst2/steps/01-teacher sst2 --output reports/distillation/sst2-cache.json
    python benchmarks/teacher_cache.py MODEL TASK --student layers=3 --steps 60 --rounds 9 --precision fp32

The same steps, in the same order of batches, are run in turns: with the teacher on the fly, as in the first epoch
without a cache, and from a cache that was filled before, as in every epoch after the first with one. Timed is the whole
step, reading included, from the start of one step to that of the next; the first steps are left out. What filling
the cache takes is printed beside it. Checked first: both give the same losses, to the precision of what is stored.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effitrans.distillation import Distillation, distill, make_student
from effitrans.distillation.trainer import DistillationTrainer
from effitrans.evaluation.provenance import provenance
from effitrans.evaluation.statistics import ratio_interval
from effitrans.evaluation.timing import pinned_threads
from effitrans.tasks import load_task
from effitrans.tasks.loading import load_for_task

OBJECTIVES: dict[str, dict[str, Any]] = {
    "response": {"objective": "response"},
    "response and feature": {"objective": {"response": 1.0, "feature": 0.1}},
}
WARMUP = 3
"""Steps that are not counted."""


@contextmanager
def step_starts() -> Iterator[list[float]]:
    """The times at which steps of distillation begin."""
    starts: list[float] = []
    original = DistillationTrainer.training_step

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        starts.append(time.perf_counter())
        return original(self, *args, **kwargs)

    DistillationTrainer.training_step = timed  # type: ignore[method-assign]
    try:
        yield starts
    finally:
        DistillationTrainer.training_step = original  # type: ignore[method-assign]


def run(options: argparse.Namespace, settings: dict[str, Any]) -> tuple[float, float]:
    """Seconds of the counted steps, and the mean loss of all."""
    task = load_task(options.task)
    teacher = load_for_task(options.model, task)
    config = Distillation(
        **settings,
        max_steps=options.steps + WARMUP + 1,
        precision=options.precision,
        log_every=options.steps + WARMUP + 1,
        max_train_examples=32 * (options.steps + WARMUP + 1),
        max_eval_examples=32,
        keep_best=False,
    )
    student = make_student(teacher.model, options.student)
    with step_starts() as starts:
        result = distill(student, teacher.model, task, config, processor=teacher.processor)
    assert result.loss is not None
    return starts[WARMUP + options.steps] - starts[WARMUP], result.loss


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The record of one objective."""
    live = OBJECTIVES[name]
    with tempfile.TemporaryDirectory() as folder:
        cached = {**live, "cache": {"folder": folder}}
        start = time.perf_counter()
        seconds, loss = run(options, cached)
        filling = time.perf_counter() - start - seconds
        _, expected = run(options, live)
        if abs(loss - expected) > 0.02 * abs(expected):
            raise SystemExit(f"{name}: the loss is {loss:.4g} from the cache and {expected:.4g} with the teacher")
        samples: dict[str, list[float]] = {"on the fly": [], "cached": []}
        for _ in range(options.rounds):
            samples["on the fly"].append(run(options, live)[0])
            samples["cached"].append(run(options, cached)[0])
        bytes_on_disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    share, interval = ratio_interval(np.array(samples["cached"]), np.array(samples["on the fly"]))
    return {
        "objective": name,
        "share": share,
        "interval": interval,
        "bytes_on_disk": bytes_on_disk,
        "first_run_without_its_steps_s": filling,
        "samples_s": samples,
    }


def main() -> None:
    options = arguments()
    with pinned_threads(options.threads):
        records = [measure(name, options) for name in OBJECTIVES]
    print(f"{options.steps} steps a round, {options.rounds} rounds, {options.precision}, {options.threads} threads")
    for record in records:
        ms = {side: 1000 * float(np.median(s)) / options.steps for side, s in record["samples_s"].items()}
        low, high = record["interval"]
        print(
            f"{record['objective']:22s} {ms['on the fly']:6.1f} ms a step on the fly, {ms['cached']:6.1f} ms cached: "
            f"{record['share']:.0%} ({low:.0%} to {high:.0%}); {record['bytes_on_disk'] / 1e6:,.0f} MB on disk"
        )
    if options.output:
        written = provenance(device=torch.device("cpu"), threads=options.threads, dtype=torch.float32, seed=0)
        settings = {name: getattr(options, name) for name in ("task", "student", "steps", "rounds", "precision")}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        whole = {"provenance": written.model_dump(mode="json"), "settings": settings, "records": records}
        options.output.write_text(json.dumps(whole, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the teacher")
    parser.add_argument("task")
    parser.add_argument("--student", default="layers=3")
    parser.add_argument("--steps", type=int, default=40, help="steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--output", type=Path, help="JSON file for the record")
    return parser.parse_args()


if __name__ == "__main__":
    main()
