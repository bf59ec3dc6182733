"""Latency and throughput of a model at every shape, in turn with its baseline."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.evaluation import shapes
from effitrans.evaluation.config import Cost, Length
from effitrans.evaluation.record import Latency, Throughput
from effitrans.evaluation.timing import NOISY, Runner, interleave, latency_row

if TYPE_CHECKING:
    from effitrans.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model as it is evaluated."""

    name: str
    model: PreTrainedModel
    processor: Any
    folder: Path | None
    """Where it is saved; None for a model that is only in memory."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


@dataclass
class Examples:
    """The real batches of each model, made once for each batch size."""

    task: "Task"
    split: str
    cost: Cost
    limit: int | None
    made: dict[tuple[int, int], list[dict[str, Tensor]]] = field(default_factory=dict)

    def of(self, subject: Subject, batch: int) -> list[dict[str, Tensor]]:
        """Batches of `batch` examples as `subject` takes them."""
        key = (id(subject.model), batch)
        if key not in self.made:
            self.made[key] = shapes.data_batches(
                subject.model,
                self.task,
                self.split,
                subject.processor,
                batch_size=batch,
                most=self.cost.batches_a_round(batch),
                limit=self.limit,
            )
        return self.made[key]


@dataclass
class Contestants:
    """The models that are timed in turn: name -> (what runs a batch, whose batches)."""

    runs: dict[str, tuple[Callable[..., Any], Subject]] = field(default_factory=dict)
    baseline: str | None = None


def contestants_of(
    subject: Subject, baseline: Subject | None, cost: Cost, optimize: bool, notes: list[str]
) -> Contestants:
    """The model and its baseline, compiled or not, under the names they have in the record."""
    contestants = Contestants()
    contestants.runs["model"] = (_compiled(subject) if optimize else subject.model, subject)
    if optimize:
        contestants.runs["model, eager"] = (subject.model, subject)
        notes.append(
            "latency is of the model compiled by effitrans.optimize"
            + ("; the baseline runs as it is (eager)" if baseline is not None else "")
        )
    if baseline is not None:
        contestants.baseline = "baseline"
        contestants.runs["baseline"] = (baseline.model, baseline)
        if optimize and cost.optimize_baseline:
            contestants.runs["baseline, compiled"] = (_compiled(baseline), baseline)
    return contestants


def _compiled(subject: Subject) -> Callable[..., Any]:
    from effitrans.runtime import optimize

    return optimize(subject.model)


def measure_grid(
    contestants: Contestants, examples: Examples, cost: Cost, notes: list[str]
) -> tuple[tuple[Latency, ...], tuple[Throughput, ...]]:
    """A row for each batch size and length that could be timed; what could not is put into `notes`."""
    rows: list[Latency] = []
    rates: list[Throughput] = []
    subject = contestants.runs["model"][1]
    for batch in cost.batches:
        for length in cost.lengths:
            runners = _runners(contestants, examples, batch, length)
            if isinstance(runners, str):
                notes.append(f"latency at {batch} x {length}: not measured, {runners}")
                continue
            row = _row(contestants, runners, batch, length, cost, subject.device)
            logger.info("latency at %d x %s: %s", batch, length, f"{row.p50_ms:.2f} ms" if row.p50_ms else row.error)
            rows.append(row)
            if row.error is None:
                rates.append(_throughput(row, runners["model"].batches))
            notes.extend(_remarks(row, cost))
    return tuple(rows), tuple(rates)


def _runners(contestants: Contestants, examples: Examples, batch: int, length: Length) -> dict[str, Runner] | str:
    """The models with their batches at one shape, or why there are none."""
    runners = {}
    for name, (run, subject) in contestants.runs.items():
        batches: Sequence[Mapping[str, Tensor]] = examples.of(subject, batch)
        if length != "data":
            # Fewer examples than a batch still give tokens for a fixed shape.
            source = batches or examples.of(subject, 1)
            if not source:
                return "the split holds no examples"
            if not shapes.can_have_length(source[0]):
                return "these inputs have no length to choose"
            limit = shapes.most_positions(subject.model)
            if limit is not None and length > limit:
                return f"{subject.name} takes at most {limit} tokens"
            batches = [shapes.fixed_batch(source, batch, length)]
        if not batches:
            return f"the split holds fewer than {batch} examples"
        runners[name] = Runner(lambda inputs, run=run: run(**inputs), batches)
    return runners


def _row(
    contestants: Contestants, runners: dict[str, Runner], batch: int, length: Length, cost: Cost, device: torch.device
) -> Latency:
    batches = runners["model"].batches
    fields: dict[str, Any] = {"batch": batch, "length": length, "compiled": "model, eager" in runners}
    if "input_ids" in batches[0]:
        fields["mean_length"] = sum(map(shapes.longest, batches)) / len(batches)
    try:
        with torch.inference_mode():
            for compiled, eager in (("model", "model, eager"), ("baseline, compiled", "baseline")):
                if compiled in runners and eager in runners:
                    deviation = _deviation(runners[compiled], runners[eager])
                    if deviation > cost.max_deviation:
                        return _failed(f"the compiled {compiled.split(',')[0]} deviates by {deviation:.2g}", fields)
            samples = interleave(runners, cost.effort, synchronize=_synchronizer(device))
    except (torch.OutOfMemoryError, MemoryError):
        return _failed("out of memory", fields)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        return _failed("out of memory", fields)
    return latency_row(samples, subject="model", baseline=contestants.baseline, **fields)


def _failed(error: str, fields: dict[str, Any]) -> Latency:
    return Latency(**fields, p50_ms=None, p90_ms=None, p99_ms=None, cv=None, runs=0, error=error)


def _deviation(compiled: Runner, eager: Runner) -> float:
    """Largest relative L2 difference of the first output tensor over the batches."""
    worst = 0.0
    for batch in eager.batches:
        ours, reference = _first_tensor(compiled.run(batch)), _first_tensor(eager.run(batch))
        difference = (ours.float() - reference.float()).norm() / reference.float().norm().clamp_min(1e-12)
        worst = max(worst, float(difference))
    return worst


def _first_tensor(output: Any) -> Tensor:
    """Logits where there are any, else the first output (of an encoder-decoder given labels the first is a loss)."""
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output[0]


def _synchronizer(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _throughput(row: Latency, batches: Sequence[Mapping[str, Tensor]]) -> Throughput:
    totals = sorted(sum(samples) for samples in row.samples_ms)
    seconds = totals[len(totals) // 2] / 1000
    tokens = [shapes.real_tokens(batch) for batch in batches]
    counted = [count for count in tokens if count is not None]
    return Throughput(
        batch=row.batch,
        length=row.length,
        items_per_s=row.batch * len(batches) / seconds,
        tokens_per_s=sum(counted) / seconds if len(counted) == len(tokens) else None,
    )


def _remarks(row: Latency, cost: Cost) -> list[str]:
    where = f"latency at {row.batch} x {row.length}"
    if row.error is not None:
        return [f"{where}: {row.error}"]
    remarks = []
    if row.cv is not None and row.cv > NOISY:
        remarks.append(f"{where}: noisy, coefficient of variation {row.cv:.0%}")
    if len(row.samples_ms) < cost.min_repeats:
        remarks.append(f"{where}: {len(row.samples_ms)} rounds only, {cost.max_seconds:g} s were over")
    return remarks
