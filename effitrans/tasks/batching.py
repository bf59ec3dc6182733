"""From a task to batches of tensors."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import DataLoader

from effitrans.errors import UsageError
from effitrans.tasks.encoding import pad_token_id
from effitrans.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, Tensor]


def encode(task: Task, split: str, processor: Any, model: Any = None, limit: int | None = None) -> "Dataset":
    """Model inputs of a split, as transformers.Trainer takes them with `collator`.

    Args:
        task: the task.
        split: one of its splits.
        processor: the model's tokenizer or image processor; None for images that need none.
        model: the model that will read them: checked against the task, its limits and input names are honoured.
        limit: take at most this many examples, from the first (rows; blocks for causal and masked language models).

    Returns:
        A data set with the columns of the model's `forward`, `labels` among them, and two that the collator
        removes: `length` (tokens, for group-by-length) and `index` (the row, from 0). Usually one entry per row;
        long contexts of questions give several, running text gives blocks.

    Raises:
        UsageError: the model's head does not fit the task, a row cannot be used, or the tokenizer is missing.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit} leaves no examples: expected at least 1")
    if model is not None:
        task.behaviour.check_model(task, model)
    rows = task.rows(split, limit if task.behaviour.limit_counts_rows else None)
    return encode_rows(task, rows, processor, model, limit)


def encode_rows(task: Task, rows: "Dataset", processor: Any, model: Any = None, limit: int | None = None) -> "Dataset":
    """Model inputs of some rows of a split, for a model that fits the task. Else as `encode`."""
    encoded = task.behaviour.encode(task, rows, processor, model, limit)
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
