"""The process that `effitrans.evaluation.fresh` starts: load the saved models, measure, write a finding a line.

Cold load time and peak memory are those of the model alone; only then is the baseline loaded, and both take turns.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.checkpoint import load_model
from effitrans.evaluation.fresh import FINDING, REQUEST, Request, Saved, load_batches
from effitrans.evaluation.latency import BASELINE, MODEL, EvaluatedModel, out_of_memory
from effitrans.evaluation.speed import Finding, MemoryUse, measure_speed


class Prepared:
    """The batches that the calling process prepared."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.role_of: dict[int, str] = {}
        """Identity of a model -> its name in the request."""

    def batches(self, model: PreTrainedModel, processor: Any, batch_size: int, most: int) -> list[dict[str, Tensor]]:
        """All those of the size; the calling process chose them."""
        return load_batches(self.folder, self.role_of[id(model)], batch_size, model.device)


def findings(folder: Path) -> Iterator[Finding]:
    """Do what the request in the folder says."""
    request = Request.model_validate_json((folder / REQUEST).read_text(encoding="utf-8"))
    torch.set_num_threads(request.threads)
    saved = request.models[MODEL]
    largest = _largest_batch(folder, request)
    before = _peak_bytes(torch.device(saved.device))
    start = time.perf_counter()
    subject = _load(saved, request.auto_class)
    load_s = time.perf_counter() - start
    yield from _memory(subject, largest, load_s, before)
    if not request.timed:
        return
    other = request.models.get(BASELINE)
    baseline = None if other is None else _load(other, request.auto_class)
    prepared = Prepared(folder)
    prepared.role_of = {id(each.model): role for role, each in ((MODEL, subject), (BASELINE, baseline)) if each}
    yield from measure_speed(
        subject, baseline, prepared, request.cost, compiled=request.compiled, generates=request.generates
    )


def _load(saved: Saved, auto_class: str | None) -> EvaluatedModel:
    model = load_model(saved.folder, auto_class)
    if model.device != torch.device(saved.device):
        model = model.to(saved.device)  # type: ignore[arg-type]
    return EvaluatedModel(saved.name, model, None, saved.folder)


def _largest_batch(folder: Path, request: Request) -> dict[str, Tensor] | None:
    """The batch with the most numbers among those of the largest size that has any."""
    for size in sorted(request.cost.batches, reverse=True):
        if batches := load_batches(folder, MODEL, size, torch.device(request.models[MODEL].device)):
            return max(batches, key=lambda batch: sum(tensor.numel() for tensor in batch.values()))
    return None


def _memory(
    subject: EvaluatedModel, batch: dict[str, Tensor] | None, load_s: float, before: int
) -> Iterator[MemoryUse | str]:
    """Run the model once; its peak is what the process, or the allocator of an accelerator, held at most."""
    problem = None if batch else "the split has no full batch"
    if batch:
        try:
            with torch.inference_mode():
                subject.model(**batch)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            problem = "out of memory"
    if problem is not None:
        yield f"peak memory: not measured, {problem}"
    peak = None if problem is not None else _peak_bytes(subject.device)
    grown = None if peak is None else max(0, peak - before)
    yield MemoryUse(load_s=load_s, peak_memory_bytes=peak, model_memory_bytes=grown)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would report the peak of the parent process where that is higher.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Keep standard output for the findings; what libraries print goes where their warnings go."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for finding in findings(Path(sys.argv[1])):
        stream.write(FINDING.dump_json(finding).decode() + "\n")
        stream.flush()


if __name__ == "__main__":
    main()
