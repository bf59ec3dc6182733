"""What a model costs: latency at several shapes beside its baseline, throughput, memory, size, operations."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effitrans.errors import UsageError
from effitrans.evaluation import shapes, size
from effitrans.evaluation.config import Cost
from effitrans.evaluation.flops import count_flops
from effitrans.evaluation.fresh import ProcessFailed, Request, Saved, measure_fresh
from effitrans.evaluation.latency import BASELINE, MODEL, EvaluatedModel, compiled_roles
from effitrans.evaluation.record import Costs, Latency
from effitrans.evaluation.speed import Finding, Process, fields_of, logged, measure_speed, notes_of
from effitrans.inference.compiling import require_compiler

if TYPE_CHECKING:
    from effitrans.tasks import Task


def usable_threads(wanted: int) -> int:
    """The threads to pin: `wanted`, or what this process may use if that is less."""
    affinity = getattr(os, "sched_getaffinity", None)
    available = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(wanted, available)


def simulated(model: nn.Module, history: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the model's speed would say nothing: masks that still multiply, fake quantization. None for a real model."""
    for entry in history:
        if reason := entry.get("summary", {}).get("simulated"):
            return str(reason)
    for name, module in model.named_modules():
        if "FakeQuant" in type(module).__name__:
            return f"fake quantization in {name}"
        if getattr(module, "parametrizations", None) is not None or any(
            key.endswith("_mask") and key.removesuffix("_mask") + "_orig" in module._parameters
            for key in module._buffers
        ):
            return f"weights of {name} are recomputed from a mask or a parametrization in every pass"
    return None


def measure(
    subject: EvaluatedModel,
    baseline: EvaluatedModel | None,
    task: "Task",
    split: str,
    cost: Cost,
    *,
    threads: int,
    limit: int | None = None,
    optimize: bool | None = None,
    simulation: str | None = None,
) -> tuple[Costs, list[str]]:
    """Measure everything `cost` asks for; call it with the threads pinned.

    Args:
        subject: the model.
        baseline: what its latency is compared with, timed in the same rounds on batches of the same examples.
        task, split, limit: where the examples come from.
        cost: what to measure.
        threads: the number that is pinned, for the fresh process.
        optimize: time the model compiled, or as it is. Default: as it is meant to run.
        simulation: why its speed says nothing (see `simulated`); no speed is measured then.

    Returns:
        The costs, and notes on all that was not measured or must be read with care.
    """
    notes: list[str] = []
    values: dict[str, Any] = {
        "parameters": size.parameters(subject.model),
        "nonzero_parameters": size.nonzero_parameters(subject.model),
        "bits_per_weight": size.bits_per_weight(subject.model),
    }
    if subject.folder is not None:
        from effitrans.checkpoint import bytes_on_disk

        values["bytes_on_disk"] = bytes_on_disk(subject.folder)
    examples = shapes.SplitBatches(task, split, limit)
    if cost.flops and (batches := examples.batches(subject.model, subject.processor, 1, cost.batches_a_round(1))):
        values["flops"], uncounted = count_flops(lambda batch: subject.model(**batch), batches)
        if uncounted:
            notes.append(f"FLOPs do not include {', '.join(uncounted)}")
    compiled = compiled_roles(subject, baseline, optimize)
    untimed = f"the model is a simulation ({simulation})" if simulation else _cannot_compile(compiled, subject.device)
    if untimed is not None:
        notes.append(f"no speed: {untimed}")
    else:
        modes = {role: "compiled" if role in compiled else "eager" for role in (MODEL, BASELINE)}
        values |= {"model_mode": modes[MODEL], "baseline_mode": modes[BASELINE] if baseline is not None else None}
        if compiled:
            notes.append(_how_timed(modes, baseline is not None))
    running = _running(subject, baseline, task, examples, cost, threads, compiled=compiled, timed=untimed is None)
    found = list(logged(running))
    return Costs(**values, **fields_of(found)), notes + notes_of(found)


def _cannot_compile(compiled: Collection[str], device: torch.device) -> str | None:
    try:
        if compiled:
            require_compiler(device)
    except UsageError as error:
        return f"{error}; or time the model as it is (--no-optimize, optimize=False)"
    return None


def _how_timed(modes: Mapping[str, str], compared: bool) -> str:
    said = {"compiled": "compiled by effitrans.optimize", "eager": "as it is"}
    note = f"timed {said[modes[MODEL]]}"
    return f"{note}, the baseline {said[modes[BASELINE]]}" if compared else note


def _running(
    subject: EvaluatedModel,
    baseline: EvaluatedModel | None,
    task: "Task",
    examples: shapes.SplitBatches,
    cost: Cost,
    threads: int,
    *,
    compiled: Collection[str],
    timed: bool,
) -> Iterator[Finding]:
    """Load time, memory and, if `timed`, speed: from a fresh process as far as that can load the models."""
    here = _why_here(subject, baseline, cost)
    generates = task.behaviour.generates
    if cost.memory and subject.folder is None:
        yield "load time, peak memory and bytes on disk: not measured, the model is not saved"
    elif cost.memory:
        subjects = {MODEL: subject}
        if baseline is not None and timed and here is None:
            subjects[BASELINE] = baseline
        request = Request(
            auto_class=task.behaviour.auto_class,
            threads=threads,
            models={role: Saved.of(each) for role, each in subjects.items()},
            cost=cost,
            timed=timed and here is None,
            compiled=frozenset(compiled),
            generates=generates,
        )
        rows = 0
        try:
            for finding in measure_fresh(request, subjects, examples):
                rows += isinstance(finding, Latency)
                yield finding
        except ProcessFailed as failure:
            yield f"the fresh process failed ({failure}): what it had not measured is null"
            if rows == 0 and not failure.killed:
                # It may lack what only this process has, such as an operator that the caller registered.
                here = here or "the fresh one failed"
    if timed and here is None:
        yield Process(process="fresh")
    elif timed:
        yield Process(process="calling")
        yield f"timed in the calling process: {here}"
        yield from measure_speed(subject, baseline, examples, cost, compiled=compiled, generates=generates)


def _why_here(subject: EvaluatedModel, baseline: EvaluatedModel | None, cost: Cost) -> str | None:
    """Why the models must be timed in the calling process; None where a fresh one can load them."""
    if subject.folder is None:
        return "the model is not saved"
    if baseline is not None and baseline.folder is None:
        return "the baseline is not saved"
    return None if cost.memory else "no fresh one was asked for (memory=False)"
