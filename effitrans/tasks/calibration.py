"""The one way by which passes draw calibration batches, from whatever form the caller's data has (see `forms`).

Examples are drawn from the train split, or the first one where there is none. The same seed draws the same examples.
Batches that come ready (a list of them, a `DataLoader`, a stream) keep their order, and a stream is read no further
than `limit` asks for.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from effitrans.checkpoint import processor_beside
from effitrans.errors import UsageError
from effitrans.tasks.batching import Batch, collator, encode_rows, loader_of
from effitrans.tasks.encoding import accepted_inputs, forward_arguments, pad_token_id
from effitrans.tasks.forms import classify, form_of, rows_of_texts
from effitrans.tasks.padding import LABELS, MAIN_INPUTS, Padding
from effitrans.tasks.task import Task, calibration_split

if TYPE_CHECKING:
    from datasets import Dataset


def calibration_batches(
    data: Any,
    model: Any,
    processor: Any = None,
    *,
    limit: int | None,
    batch_size: int,
    seed: int | None,
    needs_labels: bool = False,
) -> Iterator[Batch]:
    """Draw batches for a pass that looks at data.

    Args:
        data: in any form of `effitrans.tasks.forms`.
        model: the model that will read them. Inputs that its `forward` does not take are left out.
        processor: the tokenizer or image processor of a task or of texts. Default: the one beside the model's weights.
        limit: examples at most; None: all.
        batch_size: examples per batch, where batches are made here.
        seed: of the draw; None keeps the order of the data.
        needs_labels: refuse data without labels.

    Yields:
        Dicts of tensors on the model's device, with labels where the data has them and the model takes them.

    Raises:
        UsageError: the data has none of the forms, is empty, does not fit the model, holds NaN or infinite values, or
            lacks the labels that are needed.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=1))
    >>> rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}]
    >>> [batch["input_ids"].tolist() for batch in calibration_batches(rows, model, limit=2, batch_size=2, seed=None)]
    [[[5, 6, 7], [8, 0, 0]]]
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} leaves no examples: expected at least 1")
    device = getattr(model, "device", torch.device("cpu"))
    for batch in _drawn(data, model, processor, limit, batch_size, seed):
        kept = accepted_inputs(model, batch)
        _check(batch, kept, model, needs_labels)
        yield {name: tensor.to(device) for name, tensor in kept.items()}


def _drawn(
    data: Any, model: Any, processor: Any, limit: int | None, batch_size: int, seed: int | None
) -> Iterator[Batch]:
    form, value = classify(data)
    if form == "task":
        yield from _of_task(value, model, processor, limit, batch_size, seed)
        return
    if form == "splits":
        if not value:
            raise UsageError("the data has no splits: expected encoded examples as 'train'")
        yield from _drawn(value[calibration_split(tuple(value))], model, processor, limit, batch_size, seed)
        return
    if seed is not None and form == "dataset":
        value = value.shuffle(seed=seed)
    if seed is not None and form in ("rows", "texts"):
        value = random.Random(seed).sample(value, len(value))
    yield from _first(_of_items(value, model, processor, batch_size), limit)


def _of_task(
    task: Task, model: Any, processor: Any, limit: int | None, batch_size: int, seed: int | None
) -> Iterator[Batch]:
    processor = processor if processor is not None else processor_beside(model)
    task.behaviour.check_model(task, model)
    rows = task.rows(calibration_split(task.splits))
    if task.behaviour.entry_per_row:  # the others need not be encoded
        encoded = encode_rows(task, _picked(rows, limit, seed), processor, model)
    else:
        encoded = _picked(encode_rows(task, rows, processor, model), limit, seed)
    yield from loader_of(encoded, collator(task, processor, model), batch_size)


def _picked(entries: "Dataset", limit: int | None, seed: int | None) -> "Dataset":
    order = list(range(len(entries)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    return entries.select(order[:limit])


def _of_items(items: Iterable[Any], model: Any, processor: Any, batch_size: int) -> Iterator[Batch]:
    """Batches of rows, texts or batches, in their order."""
    iterator = iter(items)
    first = next(iterator, None)
    if first is None:
        raise UsageError("the data is empty: expected at least one example")
    form = form_of(first)
    items = itertools.chain([first], iterator)
    if form == "batches":
        for batch in items:
            yield {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        return
    if form == "texts" and processor is None:
        processor = processor_beside(model)
    pad = Padding(pad_token_id(processor, model))
    while chunk := list(itertools.islice(items, batch_size)):
        yield pad(rows_of_texts(chunk, processor, model) if form == "texts" else chunk)


def _first(batches: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
    """The first `limit` examples of some batches; the last batch is cut if need be."""
    if limit is None:
        yield from batches
        return
    remaining = limit
    for batch in batches:
        cut = {name: tensor[:remaining] for name, tensor in batch.items()}
        yield cut
        remaining -= len(next(iter(cut.values())))
        if remaining <= 0:
            return


def _check(batch: Mapping[str, Tensor], kept: Mapping[str, Tensor], model: Any, needs_labels: bool) -> None:
    if not any(name in kept for name in MAIN_INPUTS):
        raise UsageError(
            f"the data has {', '.join(batch) or 'no numbers'}, and the model takes "
            f"{', '.join(sorted(forward_arguments(model) or ()))}: pass batches or examples that hold one of "
            f"{', '.join(MAIN_INPUTS)} (a tokenizer makes them of texts), or a task"
        )
    if needs_labels and not any(name in kept for name in LABELS):
        raise UsageError(
            f"the calibration data gives {type(model).__name__} {', '.join(kept)} and no labels that it takes, and "
            "its loss is needed: pass a task, or examples with labels, and a model with a task head"
        )
    for name, tensor in kept.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UsageError(f"calibration data: {name} holds NaN or infinite values; clean the data first")
