"""A teacher that reads its outputs from disk, after a pass over the data that a later run finds done.

The pass goes over the examples in a fixed order and in fixed batches, before training. So what a run reads does not
depend on how far an earlier one came, and a run that was killed is resumed without a difference.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from effitrans.distillation.cache import fingerprint
from effitrans.distillation.cache.packing import (
    ATTENTION,
    INDICES,
    flatten,
    flatten_heads,
    layouts_of,
    pack,
    unflatten,
    unpack,
)
from effitrans.distillation.cache.store import Store
from effitrans.distillation.teacher import LABELS, LiveTeacher, refuse_overflow, teacher_batch
from effitrans.errors import UsageError
from effitrans.files import existing_place, sha256_json
from effitrans.training.data import Collate, Data, lengths_of

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.distillation.config import TaughtTraining

logger = logging.getLogger(__name__)

INDEX = "example_index"
"""The input that says which examples a batch holds: [B] int64."""

_VERSION = 1
_SHARD_BYTES = 128 * 2**20
_SAMPLE = 16
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class IndexedCollate:
    """Collates rows that bring their number, which the batch then holds as `INDEX`."""

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.collate([{name: value for name, value in row.items() if name != INDEX} for row in rows])
        return {**batch, INDEX: torch.tensor([row[INDEX] for row in rows])} if INDEX in rows[0] else batch


def with_index(data: Data) -> Data:
    """The data with a number for each example that the teacher is asked about: training, then validation.

    Raises:
        UsageError: a DataLoader, whose examples have no number; data whose inputs are drawn anew every time.
    """
    if isinstance(data.train, DataLoader):
        raise UsageError(
            "the teacher's outputs cannot be cached for a DataLoader, which does not say which examples a batch "
            "holds: pass a datasets.Dataset or a task, or leave cache out"
        )
    if data.renew is not None:
        raise UsageError(
            "the inputs of this task are drawn anew in every epoch (masked tokens), so the teacher's outputs for them "
            "cannot be cached: leave cache out"
        )
    count, validation = len(data.train), data.validation
    if validation is not None and not any(name in LABELS for name in data.collate([validation[0]])):
        validation = _numbered(validation, count)
    return replace(data, train=_numbered(data.train, 0), validation=validation, collate=IndexedCollate(data.collate))


def _numbered(rows: "Dataset", first: int) -> "Dataset":
    numbered = rows.add_column(INDEX, list(range(first, first + len(rows))))  # type: ignore[call-arg]
    if rows.format["type"] != "custom":
        return numbered
    # Prepared when they are read (images), by a function that gives the columns it makes and no others.
    prepare, columns = rows.format["format_kwargs"]["transform"], rows.format["columns"]
    return numbered.with_transform(partial(_prepared, prepare), [*columns, INDEX], rows.format["output_all_columns"])


def _prepared(prepare: Callable[[dict[str, Any]], dict[str, Any]], batch: Mapping[str, Any]) -> dict[str, Any]:
    return {**prepare({name: batch[name] for name in batch if name != INDEX}), INDEX: batch[INDEX]}


class CachedTeacher:
    """Reads what `live` gives for each example; `prepare` computes what is not on disk yet.

    Args:
        live: the teacher.
        data: with the numbers of `with_index`.
        config: the folder, dtype and number of largest logits.
        example: a batch, which tells what the outputs are.

    Raises:
        UsageError: `top_k` where there are no more classes than that, or logits of no single choice; too
            little space on the disk.
    """

    def __init__(self, live: LiveTeacher, data: Data, config: "TaughtTraining", example: Mapping[str, Tensor]) -> None:
        self.live, self.model, self.data, self.config = live, live.model, data, config
        assert config.cache is not None  # the caller asks for a cache
        self.cache = config.cache
        self.dtype, top_k = _DTYPES[self.cache.dtype], self.cache.top_k
        theirs = teacher_batch(example)
        flat = self._flat(live(example))
        self.layouts = layouts_of(flat, theirs, live.model.config.is_encoder_decoder, top_k)
        problem = getattr(live.model.config, "problem_type", None)
        if top_k is not None and problem in ("regression", "multi_label_classification"):
            raise UsageError(
                f"cache: top_k keeps the largest of the logits of one choice, and the teacher's are of a {problem}: "
                "leave it out"
            )
        if top_k is not None and not any(layout.classes for layout in self.layouts.values()):
            raise UsageError(
                f"cache: top_k {top_k}, and the teacher has no logits over more classes than that: leave it out"
            )
        parts = {name: list(tensor) for name, tensor in flat.items()}
        self.rows_per_example = len(next(iter(parts.values()))) // len(example[INDEX])
        self.splits = [rows for rows in (data.train, data.validation) if rows is not None and INDEX in _columns(rows)]
        self.count = sum(len(rows) for rows in self.splits)  # type: ignore[arg-type]
        packed = pack(flat, theirs, self.layouts, top_k, config.temperature)
        size = self._bytes_per_example(packed, len(example[INDEX]))
        self.shard_size = max(1, min(4096, int(_SHARD_BYTES // size)))
        self.bytes = size * self.count
        self.store = Store(self.cache.root / self._key()[:32])
        self._check_space()

    def _flat(self, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is stored of the outputs of a batch, before it is packed."""
        flat = flatten(outputs)
        for settings in self.config.objective.values():
            if (calls := settings.stored_calls()) is not None:
                flat |= flatten_heads(outputs[ATTENTION], *calls)
        return flat

    def _bytes_per_example(self, rows: list[dict[str, Tensor]], examples: int) -> float:
        width = {name: 4 if name.endswith(INDICES) else self.dtype.itemsize for name in rows[0]}
        size = sum(tensor.numel() * width[name] for row in rows for name, tensor in row.items()) / examples
        lengths = [length for split in self.splits for length in lengths_of(split) or [1]]  # type: ignore[arg-type]
        return size * max(1.0, sum(lengths) / len(lengths) / max(1.0, sum(lengths[:examples]) / examples))

    def _key(self) -> str:
        config, cache = self.config, self.cache
        return sha256_json(
            {
                "version": _VERSION,
                "teacher": fingerprint.of_model(self.live.model),
                "data": [fingerprint.of_rows(rows) for rows in self.splits],  # type: ignore[arg-type]
                "prepared": fingerprint.of_tensors(self.data.collate(self._sample())),
                "outputs": {name: [layout.over, layout.classes] for name, layout in self.layouts.items()},
                "settings": [cache.dtype, cache.top_k, config.precision, config.batch_size],
                "temperature": None if cache.top_k is None else config.temperature,
                "shard_size": self.shard_size,
            }
        )

    def _sample(self) -> list[dict[str, Any]]:
        """Some examples as they are read, which tells what prepares them (the sizes and means of images)."""
        return [self._example(i) for i in range(0, self.count, -(-self.count // _SAMPLE))]

    def _check_space(self) -> None:
        place = existing_place(self.cache.root)
        free = shutil.disk_usage(place).free
        if self.bytes > free and not self.store.folder.is_dir():
            raise UsageError(
                f"the teacher's outputs for {self.count} examples take about {self.bytes / 1e9:.1f} GB and {place} has "
                f"{free / 1e9:.1f} GB free: set top_k (language models) or folder of the cache, or leave cache out"
            )

    def prepare(self, accelerator: Any = None) -> None:
        """Compute and store the shards that are missing or damaged; each process does its share."""
        processes, rank = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
        shards = range(-(-self.count // self.shard_size))
        missing = [shard for shard in shards[rank::processes] if not self.store.is_complete(shard)]
        if missing:
            logger.info(
                "teacher cache: %d of %d parts to write (all: %.1f MB) in %s",
                len(missing),
                len(shards),
                self.bytes / 1e6,
                self.store.folder,
            )
        elif rank == 0:
            logger.info("teacher cache: %d examples found in %s", self.count, self.store.folder)
        for shard in missing:
            self.store.write(shard, self._compute(shard, accelerator))
        if accelerator is not None:
            accelerator.wait_for_everyone()

    def _compute(self, shard: int, accelerator: Any) -> dict[str, Tensor]:
        examples = [self._example(i) for i in range(shard * self.shard_size, self._end(shard))]
        lengths = [_length(row) for row in examples]
        order = sorted(range(len(examples)), key=lambda i: lengths[i])
        rows: list[dict[str, Tensor]] = [{} for _ in range(len(examples) * self.rows_per_example)]
        for chunk in _chunks(order, self.config.batch_size):
            batch = self.data.collate([examples[i] for i in chunk])
            if accelerator is not None:
                batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
            with accelerator.autocast() if accelerator is not None else nullcontext():
                outputs = self.live(batch)
            flat = self._flat(outputs)
            packed = pack(flat, teacher_batch(batch), self.layouts, self.cache.top_k, self.config.temperature)
            for position, row in enumerate(packed):
                part, place = divmod(position, len(chunk))
                rows[chunk[place] * self.rows_per_example + part] = {
                    n: self._narrow(t, outputs) for n, t in row.items()
                }
        tensors = {}
        for name in rows[0]:
            ends = torch.tensor([0, *(len(row[name]) for row in rows)]).cumsum(0)
            tensors |= {name: torch.cat([row[name] for row in rows]), f"{name}/ends": ends}
        return tensors

    def _narrow(self, tensor: Tensor, outputs: Mapping[str, Any]) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.cpu()
        narrow = tensor.to(self.dtype)
        if not narrow.isfinite().all():
            refuse_overflow(outputs, self.model)
            raise UsageError(
                f"the teacher's outputs go beyond what {self.cache.dtype} can hold: set the cache's dtype to 'bf16'"
            )
        return narrow.cpu()

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        if INDEX not in inputs:
            return self.live(inputs)
        examples, theirs = inputs[INDEX].tolist(), teacher_batch(inputs)
        rows = [self._row(example, part) for part in range(self.rows_per_example) for example in examples]
        device = inputs[INDEX].device
        # Under autocast torch refuses to join half-precision tensors on a CPU.
        with torch.autocast(device.type, enabled=False):
            flat = unpack(rows, theirs, self.layouts)
        return unflatten({name: tensor.to(device) for name, tensor in flat.items()})

    def _row(self, example: int, part: int) -> dict[str, Tensor]:
        shard, place = divmod(example, self.shard_size)
        tensors, number = self.store.read(shard), place * self.rows_per_example + part
        row = {}
        for name, tensor in tensors.items():
            if not name.endswith("/ends"):
                start, end = tensors[f"{name}/ends"][number : number + 2].tolist()
                row[name] = tensor[start:end]
        return row

    def _end(self, shard: int) -> int:
        return min((shard + 1) * self.shard_size, self.count)

    def _example(self, number: int) -> dict[str, Any]:
        first: Any = self.splits[0]
        return first[number] if number < len(first) else self.splits[1][number - len(first)]  # type: ignore[index]


def _columns(rows: Any) -> list[str]:
    return rows.column_names


def _length(row: Mapping[str, Any]) -> int:
    return int(row["length"]) if "length" in row else len(row.get("input_ids", ()))


def _chunks(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
