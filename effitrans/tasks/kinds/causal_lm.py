"""Causal language modelling: predict each token of running text from those before it.

`inputs` is one column of texts (`text` of a txt file), no `target`. The rows are joined by `separator` into one
text, which is tokenized as a whole and cut into blocks of `max_length` tokens (what the model can take, at most
1,024, if the task does not say). Within a split every token is predicted exactly once: the first block opens
with the tokenizer's start token (its end token, if it has no start), and each later block repeats the last
`context` tokens of the one before and predicts none of them. If the tokenizer has neither, the very first
token of the split is not predicted, and its bytes are not counted.

Perplexity is exp(sum of losses / sum of weights); bits per byte is sum of losses / ln 2 / sum of bytes, which
does not depend on the tokenizer. An example is a block, and `limit` counts blocks. Models: `AutoModelForCausalLM`.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from effitrans.config import Config, Size
from effitrans.errors import UsageError
from effitrans.tasks.encoding import max_length, need_tokenizer
from effitrans.tasks.kinds.base import Answer, Columns, Kind, texts, without_labels
from effitrans.tasks.likelihood import in_slices, token_losses
from effitrans.tasks.padding import IGNORED
from effitrans.tasks.predictions import Predictions
from effitrans.tasks.text_blocks import cut, tokenize

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task

DEFAULT_BLOCK = 1024


class CausalLMOptions(Config):
    """Settings of a causal language modelling task."""

    separator: str = "\n\n"
    """What is put between two rows."""
    context: Size = 1
    """Tokens a block repeats from the one before. More of them give a lower, fairer perplexity and take longer."""


class CausalLM(Kind):
    """Running text, token by token."""

    name: ClassVar[str] = "causal-lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    hub_task: ClassVar[str] = "text-generation"
    answer: ClassVar[Answer] = "tokens"
    generates: ClassVar[bool] = True
    form: ClassVar[str] = "decoder"
    default_metrics: ClassVar[tuple[str, ...]] = ("perplexity", "bits_per_byte")
    default_tokenizer: ClassVar[str | None] = "bytes"
    Options: ClassVar[type[Config]] = CausalLMOptions
    has_target: ClassVar[bool] = False
    limit_counts_rows: ClassVar[bool] = False
    entry_per_row: ClassVar[bool] = False

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        tokenizer = need_tokenizer(task, processor)
        length = max_length(task, tokenizer, model) or DEFAULT_BLOCK
        length = length if task.max_length else min(length, DEFAULT_BLOCK)
        context = task.options.context
        if context >= length:
            raise UsageError(
                f"task {task.name!r}: context {context} leaves nothing to predict in blocks of {length} tokens"
            )
        text = tokenize(task.options.separator.join(texts(task, rows, task.input_columns[0], first)), tokenizer)
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        opening = [] if start is None else [start]
        ids = np.concatenate([np.asarray(opening, dtype=np.int64), text.ids])
        ends = np.concatenate([np.zeros(len(opening), dtype=np.int64), text.ends])
        blocks = list(cut(len(ids), length, context))
        if not blocks:
            raise UsageError(f"the text of task {task.name!r} has {len(text.ids)} tokens: too few to predict any")
        labels = [ids[block.start : block.end].copy() for block in blocks]
        for values, block in zip(labels, blocks, strict=True):
            values[: block.predicted - block.start] = IGNORED
        return {
            "input_ids": [ids[block.start : block.end] for block in blocks],
            "attention_mask": [np.ones(block.end - block.start, dtype=np.int64) for block in blocks],
            "labels": labels,
            "length": [block.end - block.start for block in blocks],
            "bytes": [int(ends[block.end - 1] - ends[block.predicted - 1]) for block in blocks],
            "index": list(range(len(blocks))),
        }

    def encode(
        self, task: "Task", rows: "Dataset", processor: Any, model: nn.Module | None, limit: int | None
    ) -> "Dataset":
        import datasets

        column = task.input_columns[0]
        columns = self.encode_rows(task, {column: list(rows[column])}, 0, processor, model)
        return datasets.Dataset.from_dict({name: values[:limit] for name, values in columns.items()})

    def predict_batch(
        self, task: "Task", model: nn.Module, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        losses: list[float] = []
        for part in in_slices(batch, model):
            logits = model(**without_labels(part)).logits
            losses += token_losses(logits[:, :-1], part["labels"][:, 1:])
        return {"losses": losses, "weights": (batch["labels"][:, 1:] != IGNORED).sum(-1).tolist()}

    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        return Predictions(
            predictions=None,
            references=None,
            losses=np.asarray(outputs["losses"]),
            weights=np.asarray(outputs["weights"], dtype=np.float64),
            bytes=np.asarray(encoded["bytes"], dtype=np.int64),
        )
