"""Run a model over a split and bring its answers back in the order of the data."""

import itertools
from typing import Any

import torch

from effitrans.errors import UsageError
from effitrans.processes import process_place
from effitrans.tasks.batching import collator, encode, loader_of
from effitrans.tasks.predictions import Predictions
from effitrans.tasks.task import Task, load_task


def predict(
    model: Any,
    task: Task | str,
    split: str,
    processor: Any = None,
    *,
    batch_size: int = 32,
    limit: int | None = None,
    device: Any = None,
    generation: dict[str, Any] | None = None,
    progress: bool = False,
    distributed: bool = False,
) -> Predictions:
    """Answers, references and losses of a model on a split.

    The model runs in evaluation mode without gradients, on batches of similar length, so that little is padded.
    It is left as it was, its mode and its device included.

    Args:
        model: a transformers model, or a callable that stands for one.
        task: the task, or its name or YAML.
        split: one of its splits.
        processor: the model's tokenizer or image processor; None for images that need none.
        batch_size: examples per batch. Language models run fewer at a time where the logits would be too large.
        limit: take at most this many examples, from the first.
        device: where to run; where the model is, if none.
        generation: arguments of `generate` for sequence-to-sequence tasks, such as `{"num_beams": 4}`; greedy
            decoding if none.
        progress: show a bar on stderr.
        distributed: share the batches among the processes of a `torchrun` job. All of them must call this, and all
            get the same predictions: those of one process, as the batches are the same.

    Raises:
        UsageError: the model does not fit the task, or `generation` is given to a kind that does not generate.
    """
    task = load_task(task)
    kind = task.behaviour
    if generation and kind.answer != "text":
        raise UsageError(
            f"generation settings are for tasks whose answer is a generated text, and {task.name!r} is {kind.name}: "
            "leave them out"
        )
    config = getattr(model, "config", None)
    pad_token = getattr(config, "pad_token_id", None)
    encoded = encode(task, split, processor, model, limit)
    loader: Any = loader_of(encoded, collator(task, processor, model), batch_size, bucket=True)
    home = getattr(model, "device", torch.device("cpu"))
    target = torch.device(device) if device is not None else home
    was_training = getattr(model, "training", False)
    rank, processes = process_place() if distributed else (0, 1)
    outputs: dict[str, list[Any]] = {}
    order: list[int] = []
    try:
        if was_training:
            model.eval()
        if target != home:
            model.to(target)
        with torch.inference_mode():
            batches = zip(loader.batch_sampler, _shown(loader, progress, task), strict=True)
            for entries, batch in itertools.islice(batches, rank, None, processes):
                batch = {name: tensor.to(target) for name, tensor in batch.items()}
                for name, values in kind.predict_batch(task, model, batch, processor, generation or {}).items():
                    outputs.setdefault(name, []).extend(values)
                order += entries
    finally:
        if target != home:
            model.to(home)
        if was_training:
            model.train()
        if config is not None and hasattr(config, "pad_token_id"):
            config.pad_token_id = pad_token
    if processes > 1:
        outputs, order = _gathered(outputs, order)
    places = sorted(range(len(order)), key=order.__getitem__)
    sorted_outputs = {name: [values[place] for place in places] for name, values in outputs.items()}
    rows = task.rows(split, limit if kind.limit_counts_rows else None)
    return kind.gather(task, rows, encoded, sorted_outputs, processor)


def _gathered(outputs: dict[str, list[Any]], order: list[int]) -> tuple[dict[str, list[Any]], list[int]]:
    """What all processes have predicted, and the rows it belongs to."""
    from accelerate.utils import gather_object

    parts = gather_object([(outputs, order)])
    names = next((part.keys() for part, _ in parts if part), ())
    joined = {name: [value for part, _ in parts for value in part.get(name, ())] for name in names}
    return joined, [entry for _, entries in parts for entry in entries]


def _shown(loader: Any, progress: bool, task: Task) -> Any:
    if not progress:
        return loader
    from rich.console import Console
    from rich.progress import track

    return track(loader, description=task.name, total=len(loader), console=Console(stderr=True), transient=True)
