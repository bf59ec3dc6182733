"""`evaluate`: score a model on a task, alone or beside a baseline, and return one record."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.checkpoint.accepting import as_model, evaluation_mode, named_outputs
from effitrans.config import as_config
from effitrans.errors import UsageError
from effitrans.evaluation import curves, quality, size
from effitrans.evaluation.cache import cached, predictions_key
from effitrans.evaluation.config import Cost
from effitrans.evaluation.cost import measure, simulated, usable_threads
from effitrans.evaluation.latency import EvaluatedModel
from effitrans.evaluation.provenance import provenance
from effitrans.evaluation.record import Record, TaskReference
from effitrans.evaluation.similarity import layer_similarity
from effitrans.evaluation.timing import pinned_threads
from effitrans.inference.compiling import require_compiler
from effitrans.processes import is_main_process, wait_for_everyone
from effitrans.tasks.metrics import check_metrics

if TYPE_CHECKING:
    from effitrans.tasks import Predictions, Task

logger = logging.getLogger(__name__)

Source = PreTrainedModel | str | Path

DEFAULT_COST = Cost()


def evaluate(
    model: Source,
    task: "str | Path | dict[str, Any] | Task",
    *,
    processor: Any = None,
    split: str = "test",
    baseline: Source | None = None,
    cost: Cost | None = DEFAULT_COST,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    optimize: bool | None = None,
    name: str | None = None,
    cache: bool = True,
    distributed: bool = False,
) -> Record:
    """Score a model on quality, fidelity to a baseline, and cost.

    Quality is that of the model as it is; `optimize` only changes what is timed, after its output was compared with
    the uncompiled model's on every timed batch. Models in folders are timed in a process started for it, others in
    the calling one, which a note says.

    Args:
        model: a model, a folder or a hub name. Bytes on disk, load time and memory need a folder.
        task: a built-in task, a task YAML, or a `Task`.
        processor: tokenizer or image processor. Default: the one saved with the model.
        split: split of the task.
        baseline: what to compare with, on the same examples, timed in the same rounds.
        cost: what to measure beside quality; None measures nothing but quality and fidelity.
        batch_size: examples per batch when scoring (timing has its own).
        limit: score at most this many examples, from the first. Default: all.
        seed: of the bootstrap.
        optimize: time the model compiled by `effitrans.optimize`, or (False) both models as they are. Default: models
            with integer layers compiled, as they are meant to run, others as they are; so is the baseline in any case.
        name: name of the model in the record. Default: its folder or hub name, else its class.
        cache: keep the predictions of saved models on disk, and take them from there while neither model, data nor
            code have changed (`effitrans.files.cache_directory`).
        distributed: share the scoring among the processes of a `torchrun` job, all of which must call this; the
            quality is that of one process. The costs are measured by the main process alone, and null in the others.

    Raises:
        UsageError: no such model, task or split; no examples; a metric that does not fit; predictions that are NaN; a
            baseline that cannot be loaded or was scored on other examples.

    Example:
        >>> record = evaluate("runs/student", "sst2", baseline="runs/teacher")    # doctest: +SKIP
        >>> record.quality["accuracy"].value, record.cost.latency[0].ratio_ci95   # doctest: +SKIP
    """
    from effitrans.tasks import KINDS, load_task

    definition = load_task(task)
    if optimize is not None and cost is None:
        raise UsageError(f"optimize={optimize} decides what is timed, and cost=None times nothing: pass cost=Cost()")
    if cost is not None:
        cost = as_config(cost, "evaluate", Cost, "Cost(batches=(1, 8))")
    metrics = check_metrics(definition)
    auto_class = KINDS[definition.kind].auto_class
    subject = _subject(model, auto_class, processor, name)
    against = None
    if baseline is not None:
        try:
            against = _subject(baseline, auto_class, None, None, subject.processor)
        except UsageError as error:
            raise UsageError(f"baseline: {error}") from error
    if optimize:
        require_compiler(subject.device)
    if distributed and not is_main_process():
        cost = None
    threads = usable_threads(cost.threads) if cost else torch.get_num_threads()
    notes: list[str] = []
    models = [subject.model, *([] if against is None else [against.model])]
    with pinned_threads(threads), evaluation_mode(*models), named_outputs(*models):
        scored = _predict(subject, definition, split, batch_size, limit, cache, distributed)
        result: dict[str, Any] = {
            "quality": quality.score(scored, metrics, seed),
            "right": quality.right(scored, metrics),
            "confusion": curves.confusion(scored, definition.label_names()),
            "roc": curves.roc(scored),
        }
        if against is not None:
            reference = _predict(against, definition, split, batch_size, limit, cache, distributed)
            fidelity = quality.compare(scored, reference, metrics, name=against.name, seed=seed)
            result["fidelity"] = fidelity.model_copy(
                update={
                    "changes": curves.changes(fidelity.flips, scored, reference, definition, split),
                    "cka": layer_similarity(subject, against, definition, split, limit),
                    "baseline_parameters": size.parameters(against.model),
                    "baseline_bytes_on_disk": checkpoint.bytes_on_disk(against.folder) if against.folder else None,
                }
            )
        history = checkpoint.history(subject.model)
        simulation = simulated(subject.model, history)
        if cost is not None:
            result["cost"], notes = measure(
                subject,
                against,
                definition,
                split,
                cost,
                threads=threads,
                limit=limit,
                optimize=optimize,
                simulation=simulation,
            )
        elif simulation is not None:
            notes.append(f"the model is a simulation ({simulation})")
    notes += [warning for entry in history for warning in entry.get("summary", {}).get("warnings", ())]
    if distributed:
        wait_for_everyone()
    if limit is not None:
        notes.append(f"scored on the first {len(scored)} examples of the split")
    return Record(
        model=subject.name,
        task=TaskReference(
            name=definition.name,
            version=definition.version,
            split=split,
            kind=definition.kind,
            dataset=hub.hub if (hub := definition.hub_source(split)) else None,
            fingerprint=definition.fingerprint(split)
            if limit is None
            else f"{definition.fingerprint(split)}[:{limit}]",
        ),
        provenance=provenance(
            device=subject.device,
            threads=threads,
            dtype=_dtype(subject.model),
            seed=seed,
        ),
        notes=tuple(notes),
        structure=size.structure(subject.model),
        history=tuple(history),
        **result,
    )


def _subject(
    source: Source, auto_class: str, processor: Any, name: str | None, fallback_processor: Any = None
) -> EvaluatedModel:
    """Load what is not loaded yet, with the processor that belongs to it."""
    if isinstance(source, str | Path):
        model = as_model(checkpoint.load_model(source, auto_class))
        path = Path(checkpoint.find_model(source))
        saved = None if processor else checkpoint.load_processor(source)
        other = processor or (None if saved else fallback_processor)
        folder = path if path.is_dir() else None
        return EvaluatedModel(name or folder_name(path), model, saved or other, folder, own_processor=other is None)
    source = as_model(source)
    origin = str(getattr(source.config, "name_or_path", "") or "")
    own = processor or fallback_processor or checkpoint.processor_beside(source)
    return EvaluatedModel(name or (folder_name(Path(origin)) if origin else type(source).__name__), source, own, None)


def folder_name(path: Path) -> str:
    """How a model folder is called in records: its name, with its parent's where that says too little.

    >>> folder_name(Path("runs/student")), folder_name(Path("runs/sst2/model"))
    ('student', 'sst2/model')
    """
    return f"{path.parent.name}/{path.name}" if path.name == "model" and path.parent.name else path.name


def _predict(
    subject: EvaluatedModel,
    task: "Task",
    split: str,
    batch_size: int,
    limit: int | None,
    cache: bool,
    distributed: bool,
) -> "Predictions":
    from effitrans.tasks import predict

    def compute() -> "Predictions":
        logger.info("scoring %s on %s/%s", subject.name, task.name, split)
        return predict(
            subject.model,
            task,
            split,
            subject.processor,
            batch_size=batch_size,
            limit=limit,
            progress=True,
            distributed=distributed,
        )

    # Each process would look for itself, and one that finds an entry would leave the others waiting.
    if cache and not distributed and subject.folder is not None and subject.own_processor:
        key = predictions_key(
            subject.folder,
            task,
            split,
            batch_size=batch_size,
            limit=limit,
            device=subject.device,
            dtype=str(_dtype(subject.model)),
        )
        scored = cached(key, compute)
    else:
        scored = compute()
    quality.check_predictions(scored, subject.name)
    return scored


def _dtype(model: PreTrainedModel) -> torch.dtype:
    """Type of the activations: that of the floating-point weights."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
