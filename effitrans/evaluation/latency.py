"""Latency and throughput of a model at every shape, in turn with its baseline."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers import PreTrainedModel

from effitrans.errors import WrongResult
from effitrans.evaluation import shapes
from effitrans.evaluation.config import Cost
from effitrans.evaluation.record import Latency, Length, Throughput
from effitrans.evaluation.timing import NOISY, Effort, Runner, interleave, latency_row
from effitrans.inference.compiling import meant_compiled, optimize

MODEL, MODEL_EAGER = "model", "model, eager"
BASELINE, BASELINE_EAGER, BASELINE_COMPILED = "baseline", "baseline, eager", "baseline, compiled"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model as it is evaluated."""

    name: str
    model: PreTrainedModel
    processor: Any
    folder: Path | None
    """Where it is saved; None for a model that is only in memory."""
    own_processor: bool = True
    """Whether the processor is the one saved with the model (or there is none)."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device


@dataclass(frozen=True)
class TimedModel:
    """One of the models that are timed in turn."""

    run: Callable[..., Any]
    """The model, or what was compiled from it."""
    subject: EvaluatedModel


def compiled_roles(subject: EvaluatedModel, baseline: EvaluatedModel | None, optimize: bool | None) -> frozenset[str]:
    """Which of "model" and "baseline" are timed compiled.

    By default those that are meant to run so. `optimize` decides for the model; the baseline stays as it is meant to
    run, unless nothing is to be compiled.
    """
    if optimize is False:
        return frozenset()
    model = {MODEL} if optimize or meant_compiled(subject.model) else set()
    return frozenset(model | ({BASELINE} if baseline is not None and meant_compiled(baseline.model) else set()))


def timed_models(
    subject: EvaluatedModel, baseline: EvaluatedModel | None, cost: Cost, compiled: Collection[str]
) -> dict[str, TimedModel]:
    """The model and its baseline, under the names they have in the record; those in `compiled` as they are too."""
    timed = {}
    for role, eager, each in ((MODEL, MODEL_EAGER, subject), (BASELINE, BASELINE_EAGER, baseline)):
        if each is not None and role in compiled:
            timed |= {role: TimedModel(_compiled(each), each), eager: TimedModel(each.model, each)}
        elif each is not None:
            timed[role] = TimedModel(each.model, each)
    if baseline is not None and cost.optimize_baseline and MODEL in compiled and BASELINE not in compiled:
        timed[BASELINE_COMPILED] = TimedModel(_compiled(baseline), baseline)
    return timed


def _compiled(subject: EvaluatedModel) -> Callable[..., Any]:
    return optimize(subject.model)


def measure_grid(
    timed: Mapping[str, TimedModel], examples: shapes.Batches, cost: Cost
) -> Iterator[Latency | Throughput | str]:
    """The rows of each batch size and length, as soon as they are there, and notes on what could not be timed."""
    for batch in cost.batches:
        for length in cost.lengths:
            runners = runners_at(timed, examples, cost, batch, length)
            if isinstance(runners, str):
                yield f"latency at {batch} x {length}: not measured, {runners}"
                continue
            row, rate = _measure(runners, timed[MODEL].subject.device, cost, batch, length)
            yield row
            if rate is not None:
                yield rate
            yield from _remarks(row, cost)


def runners_at(
    timed: Mapping[str, TimedModel], examples: shapes.Batches, cost: Cost, batch: int, length: Length
) -> dict[str, Runner] | str:
    """The models with their batches at one shape, or why there are none."""
    runners = {}
    for name, each in timed.items():
        model, processor = each.subject.model, each.subject.processor
        batches = examples.batches(model, processor, batch, cost.batches_a_round(batch))
        if length != "data":
            # Fewer examples than a batch still give tokens for a fixed shape.
            source = batches or examples.batches(model, processor, 1, cost.batches_a_round(1))
            if not shapes.can_have_length(source[0]):
                return "these inputs have no length to choose"
            limit = shapes.most_positions(model)
            if limit is not None and length > limit:
                return f"{each.subject.name} takes at most {limit} tokens"
            batches = [shapes.fixed_batch(source, batch, length)]
        if not batches:
            return f"the split holds fewer than {batch} examples"
        runners[name] = Runner(lambda inputs, run=each.run: run(**inputs), batches)
    return runners


def _measure(
    runners: dict[str, Runner], device: torch.device, cost: Cost, batch: int, length: Length
) -> tuple[Latency, Throughput | None]:
    """Check that compiled models still say the same, then time all of them."""
    fields: dict[str, Any] = {"batch": batch, "length": length, "compiled": MODEL_EAGER in runners}
    synchronize = synchronizer(device)
    problem = None
    samples: dict[str, Any] = {}
    try:
        with torch.inference_mode():
            problem = _deviation(runners, cost.max_deviation)
            if problem is None:
                runners = _affordable(runners, cost, synchronize)
                samples = interleave(runners, cost.effort, synchronize=synchronize)
    except WrongResult as error:
        problem = str(error)
    except TorchDynamoException as error:
        reason, _, _ = str(error).strip().partition("\n")
        problem = f"compiling failed ({reason})"
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        problem = "out of memory"
    if problem is not None:
        return Latency(**fields, p50_ms=None, p90_ms=None, p99_ms=None, cv=None, runs=0, error=problem), None
    batches = runners[MODEL].batches
    row = latency_row(
        samples,
        subject=MODEL,
        baseline=BASELINE if BASELINE in runners else None,
        mean_length=shapes.mean_length(batches),
        **fields,
    )
    return row, _throughput(row, batches)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; on the CPU torch raises a plain RuntimeError for that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "allocate memory" in str(error) or "not enough memory" in str(error)


def _deviation(runners: Mapping[str, Runner], most: float) -> str | None:
    """What is wrong with the outputs of a compiled model; None if they are those of the eager one.

    The outputs of all batches are compared together: the logits of one undecided sentence are close to zero, and a
    rounding of an integer model is large beside them.
    """
    for compiled, eager in ((MODEL, MODEL_EAGER), (BASELINE, BASELINE_EAGER), (BASELINE_COMPILED, BASELINE)):
        if compiled not in runners or eager not in runners:
            continue
        error = total = 0.0
        for batch in runners[eager].batches:
            ours, reference = (_main_output(runners[name].run(batch)).float() for name in (compiled, eager))
            error += float((ours - reference).square().sum())
            total += float(reference.square().sum())
        relative = (error / max(total, 1e-24)) ** 0.5
        if not relative <= most:
            return f"the output of the compiled {eager.partition(',')[0]} is off by {relative:.2g} (relative L2)"
    return None


def _main_output(output: Any) -> Tensor:
    """Logits where there are any, else the first output (that of an encoder-decoder given labels is a loss)."""
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else output[0]


def _affordable(runners: Mapping[str, Runner], cost: Cost, synchronize: Callable[[], None]) -> dict[str, Runner]:
    """As many batches per round as `max_seconds` leaves time for, spread over those there are; at least one."""
    once = {name: Runner(runner.run, runner.batches[:1]) for name, runner in runners.items()}
    samples = interleave(once, Effort(warmup=1, min_repeats=1, min_seconds=0.0), synchronize=synchronize)
    seconds = sum(float(times.mean()) for times in samples.values())
    affordable = int(cost.max_seconds / (cost.warmup + cost.min_repeats) / max(seconds, 1e-9))
    chosen = shapes.spread(len(runners[MODEL].batches), max(1, affordable))
    return {name: Runner(runner.run, [runner.batches[i] for i in chosen]) for name, runner in runners.items()}


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits for a device to be done."""
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
        return [f"{where}: not measured, {row.error}"]
    remarks = []
    if row.cv is not None and row.cv > NOISY:
        remarks.append(f"{where}: noisy, coefficient of variation {row.cv:.0%}")
    if len(row.samples_ms) < cost.min_repeats:
        remarks.append(f"{where}: {len(row.samples_ms)} rounds only, {cost.max_seconds:g} s were over")
    return remarks
