"""From a task, or whatever data the caller holds, to batches of tensors."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from effitrans.errors import UsageError
from effitrans.tasks.encoding import forward_arguments, pad_token_id
from effitrans.tasks.padding import BOOKKEEPING, pad_batch
from effitrans.tasks.task import Task, load_task, names_task

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, Tensor]

MAIN_INPUTS = ("input_ids", "pixel_values", "inputs_embeds")
"""One of these is in every batch that a model can run on."""


def encode(task: Task, split: str, processor: Any, model: Any = None, limit: int | None = None) -> "Dataset":
    """Model inputs of a split, as transformers.Trainer takes them with `collator`.

    Args:
        task: the task.
        split: one of its splits.
        processor: the model's tokenizer or image processor; None for images that need none.
        model: the model that will read them: checked against the task, its limits and input names are honoured.
        limit: take the first so many examples (rows; blocks for causal and masked language models).

    Returns:
        A data set with the columns of the model's `forward`, `labels` among them, and two that the collator
        removes: `length` (tokens, for group-by-length) and `index` (the row, from 0). Usually one entry a row;
        long contexts of questions give several, running text gives blocks.

    Raises:
        UsageError: the model's head does not fit the task, a row cannot be used, or the tokenizer is missing.
    """
    kind = task.behaviour
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} leaves no examples: expected at least 1")
    if model is not None:
        kind.check_model(task, model)
    rows = task.rows(split, limit if kind.limit_counts_rows else None)
    encoded = kind.encode(task, rows, processor, model, limit)
    if model is not None:
        _check_vocabulary(encoded, model, processor)
    return encoded


def _check_vocabulary(encoded: "Dataset", model: Any, processor: Any) -> None:
    """Refuse token ids that the model has no embedding for: another model's tokenizer."""
    import pyarrow.compute

    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size is None or "input_ids" not in encoded.column_names:
        return
    largest = pyarrow.compute.max(pyarrow.compute.list_flatten(encoded.data.column("input_ids"))).as_py()  # type: ignore[attr-defined]
    if largest >= size:
        raise UsageError(
            f"the tokenizer ({type(processor).__name__}, {len(processor)} tokens) gives token {largest} and the model "
            f"knows {size} tokens: pass the tokenizer that belongs to the model"
        )


def collator(
    task: Task, processor: Any, model: Any = None, *, pad_to_multiple_of: int | None = None, train: bool = False
) -> Callable[[list[dict[str, Any]]], Batch]:
    """What makes a padded batch of some entries of an encoded data set.

    Args:
        task: the task.
        processor: gives the padding token; without one the end token is used, hidden by the attention mask.
        model: the model that will read the batches. Sequence-to-sequence batches hold `decoder_input_ids` if it
            is given. If its config names no padding token, it is set to the one that is used, since decoders
            that classify find the end of a text by it.
        pad_to_multiple_of: round padded lengths up to a multiple of this.
        train: draw the masks of masked language modelling anew each time; other kinds do not differ.
    """
    pad = pad_token_id(processor, model)
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "pad_token_id", pad) is None:
        config.pad_token_id = pad
    return partial(_collate, task, processor, model, pad, pad_to_multiple_of, train)


def _collate(
    task: Task, processor: Any, model: Any, pad: int, multiple: int | None, train: bool, features: list[dict[str, Any]]
) -> Batch:
    if train:
        features = task.behaviour.renew(task, features, processor)
    return task.behaviour.collate(task, features, pad, multiple, model)


def plan_batches(
    lengths: Sequence[int], batch_size: int, *, bucket: bool = False, shuffle_seed: int | None = None
) -> list[list[int]]:
    """Which entries go into which batch; each entry into one.

    Args:
        lengths: the length of each entry.
        batch_size: entries a batch; the last may hold fewer.
        bucket: put entries of similar length together, longest first, so that little is padded (and too large
            a batch fails at once). With a seed, within groups of 50 batches, whose batches are then shuffled.
        shuffle_seed: shuffle; in the order of the data if none.

    >>> plan_batches([3, 9, 4, 8], 2, bucket=True)
    [[1, 3], [2, 0]]
    """
    order = list(range(len(lengths)))
    generator = random.Random(shuffle_seed)
    if shuffle_seed is not None:
        generator.shuffle(order)
    if not bucket:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    group = batch_size * 50 if shuffle_seed is not None else max(len(order), 1)
    batches = []
    for start in range(0, len(order), group):
        longest_first = sorted(order[start : start + group], key=lambda entry: -lengths[entry])
        batches += [longest_first[at : at + batch_size] for at in range(0, len(longest_first), batch_size)]
    if shuffle_seed is not None:
        generator.shuffle(batches)
    return batches


def data_loader(
    task: Task,
    split: str,
    processor: Any,
    *,
    batch_size: int,
    model: Any = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
    bucket: bool = False,
    pad_to_multiple_of: int | None = None,
) -> DataLoader:
    """Batches of a split: dicts of tensors, `labels` among them, padded to the longest of the batch.

    `loader.batch_sampler` is the list of the entries of each batch, and `loader.dataset` the result of `encode`.
    See `encode`, `collator` and `plan_batches` for the arguments.
    """
    encoded = encode(task, split, processor, model, limit)
    return loader_of(encoded, collator(task, processor, model, pad_to_multiple_of=pad_to_multiple_of), batch_size,
                     bucket=bucket, shuffle_seed=shuffle_seed)  # fmt: skip


def loader_of(
    encoded: "Dataset",
    collate: Callable[[list[dict[str, Any]]], Batch],
    batch_size: int,
    *,
    bucket: bool = False,
    shuffle_seed: int | None = None,
) -> DataLoader:
    """Batches of an encoded data set."""
    if batch_size < 1:
        raise UsageError(f"batch_size {batch_size}: expected at least 1")
    lengths = list(encoded["length"]) if "length" in encoded.column_names else [1] * len(encoded)
    batches = plan_batches(lengths, batch_size, bucket=bucket, shuffle_seed=shuffle_seed)
    return DataLoader(encoded, batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]


def as_batches(
    data: Any, *, model: Any, processor: Any = None, batch_size: int = 32, limit: int | None = None
) -> Iterator[Batch]:
    """Batches for a pass that looks at data, from whatever the caller holds.

    Args:
        data: a batch, a `DataLoader` or another iterable of batches; a `datasets.Dataset` or iterable of encoded
            examples (dicts with `input_ids` or `pixel_values`), which are padded here, or a mapping with such a one as
            "train"; a `Task`, a task's name, mapping or YAML, of which examples of the train split (the first split,
            without one) are drawn with a fixed seed.
        model: the model that will read them. Inputs that its `forward` does not take are left out.
        processor: the tokenizer of a task, or what pads examples; if none, the one beside the model's weights.
        batch_size: examples a batch, where batches are made here.
        limit: take so many examples at most, whatever the batches.

    Yields:
        Dicts of tensors on the model's device, with `labels` where the data has them and the model takes them.

    Raises:
        UsageError: the data is empty, or is none of these.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} leaves no examples: expected at least 1")
    accepted = forward_arguments(model)
    device = getattr(model, "device", torch.device("cpu"))
    if names_task(data):
        batches = _task_batches(load_task(data), model, processor, batch_size, limit)
    else:
        batches = _first(_batches(data, model, processor, batch_size), limit)
    for batch in batches:
        kept = {name: tensor for name, tensor in batch.items() if accepted is None or name in accepted}
        if not any(name in kept for name in MAIN_INPUTS):
            raise UsageError(
                f"the data has {', '.join(batch) or 'no numbers'}, and the model takes "
                f"{', '.join(sorted(accepted or ()))}: pass batches or examples that hold one of "
                f"{', '.join(MAIN_INPUTS)} (a tokenizer makes them of texts), or a task"
            )
        yield {name: tensor.to(device) for name, tensor in kept.items()}


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


def _batches(data: Any, model: Any, processor: Any, batch_size: int) -> Iterator[Batch]:
    if isinstance(data, Mapping) and is_batch(data):
        data = [data]
    if isinstance(data, Mapping) and "train" in data:
        data = data["train"]
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UsageError(
            f"data is a {type(data).__name__}: expected a DataLoader, a datasets.Dataset, a list of examples, or a task"
        )
    iterator = iter(data)
    first = next(iterator, None)
    if first is None:
        raise UsageError("the data is empty: expected at least one example")
    if not isinstance(first, Mapping):
        raise UsageError(f"the data holds {type(first).__name__} objects: expected dicts such as {{'input_ids': ...}}")
    items = itertools.chain([first], iterator)
    if is_batch(first):
        yield from (_tensors(batch) for batch in items)
        return
    pad = pad_token_id(processor, model)
    while chunk := [_numeric(example) for example in itertools.islice(items, batch_size)]:
        yield pad_batch(chunk, pad)


def _task_batches(task: Task, model: Any, processor: Any, batch_size: int, limit: int | None) -> Iterator[Batch]:
    if processor is None:
        processor = _processor_of(model)
    split = "train" if "train" in task.splits else task.splits[0]
    kind = task.behaviour
    kind.check_model(task, model)
    rows = task.rows(split)
    if kind.limit_counts_rows:
        rows = rows.shuffle(seed=0)
        rows = rows.select(range(min(limit or len(rows), len(rows))))
    encoded = kind.encode(task, rows, processor, model, None)
    if not kind.limit_counts_rows:
        encoded = encoded.shuffle(seed=0)
    encoded = encoded.select(range(min(limit or len(encoded), len(encoded))))
    _check_vocabulary(encoded, model, processor)
    yield from loader_of(encoded, collator(task, processor, model), batch_size)


def _processor_of(model: Any) -> Any:
    """The tokenizer or image processor that lies beside a model's weights, if there is one."""
    from effitrans.checkpoint import load_processor

    source = getattr(getattr(model, "config", None), "_name_or_path", "")
    try:
        return load_processor(source) if source else None
    except (OSError, ValueError) as error:
        raise UsageError(f"no tokenizer or image processor was found beside {source}: pass processor=") from error


def is_batch(example: Mapping[str, Any]) -> bool:
    """Whether a mapping holds tensors with a batch dimension rather than one example."""
    for name, dimensions in (("input_ids", 2), ("pixel_values", 4), ("inputs_embeds", 3)):
        if isinstance(example.get(name), Tensor):
            return example[name].ndim == dimensions
    return False


def _tensors(batch: Mapping[str, Any]) -> Batch:
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}


def _numeric(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example's numbers; texts that lie beside them are left out."""
    if "label" in example and "labels" not in example:
        example = {**example, "labels": example["label"]}
    return {
        name: value
        for name, value in example.items()
        if name not in BOOKKEEPING and name != "label" and not isinstance(value, str | None | Mapping)
    }
