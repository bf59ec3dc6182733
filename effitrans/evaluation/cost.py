"""What a model costs: latency at several shapes beside its baseline, throughput, memory, size, operations."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from effitrans.evaluation import generation, shapes, size
from effitrans.evaluation.config import Cost
from effitrans.evaluation.flops import count_flops
from effitrans.evaluation.latency import Subject, contestants_of, measure_grid
from effitrans.evaluation.probe import probe
from effitrans.evaluation.record import Costs

if TYPE_CHECKING:
    from effitrans.tasks import Task


OPTIMIZED = "latency and throughput are of the model compiled by effitrans.optimize"


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
    subject: Subject,
    baseline: Subject | None,
    task: "Task",
    split: str,
    cost: Cost,
    *,
    threads: int,
    limit: int | None = None,
    optimize: bool = False,
    simulation: str | None = None,
) -> tuple[Costs, list[str]]:
    """Measure everything `cost` asks for; call it with the threads pinned.

    Args:
        subject: the model.
        baseline: what its latency is compared with, timed in the same rounds on batches of the same examples.
        task, split, limit: where the examples come from.
        cost: what to measure.
        threads: the number that is pinned, for the fresh process.
        optimize: time the model compiled.
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
    examples = shapes.Examples(task, split, limit)
    if cost.flops and (batches := examples.batches(subject.model, subject.processor, 1, cost.batches_a_round(1))):
        values["flops"], uncounted = count_flops(lambda batch: subject.model(**batch), batches)
        if uncounted:
            notes.append(f"FLOPs do not include {', '.join(uncounted)}")
    if cost.memory:
        values |= _memory(subject, task, examples, cost, threads, notes)
    if simulation is not None:
        notes.append(f"no speed: the model is a simulation ({simulation})")
        return Costs(**values), notes
    if optimize:
        notes.append(OPTIMIZED + ("; the baseline runs as it is" if baseline is not None else ""))
    contestants = contestants_of(subject, baseline, cost, optimize)
    values["latency"], values["throughput"] = measure_grid(contestants, examples, cost, notes)
    if task.kind in generation.KINDS and cost.contexts:
        values["generation"] = generation.measure_generation(subject, baseline, examples, cost, notes)
    return Costs(**values), notes


def _memory(
    subject: Subject, task: "Task", examples: shapes.Examples, cost: Cost, threads: int, notes: list[str]
) -> dict[str, Any]:
    if subject.folder is None:
        notes.append("load time, peak memory and bytes on disk: not measured, the model is not saved")
        return {}
    for batch in sorted(cost.batches, reverse=True):
        candidates = examples.batches(subject.model, subject.processor, batch, cost.batches_a_round(batch))
        if candidates:
            break
    else:
        notes.append("load time and peak memory: not measured, the split has no full batch")
        return {}
    largest = max(candidates, key=lambda batch: sum(tensor.numel() for tensor in batch.values()))
    found = probe(subject.folder, task.behaviour.auto_class, largest, threads=threads, device=subject.device)
    if isinstance(found, str):
        notes.append(f"load time and peak memory: not measured ({found})")
        return {}
    return {
        "load_s": found.load_s,
        "peak_memory_bytes": found.peak_memory_bytes,
        "model_memory_bytes": found.model_memory_bytes,
    }
