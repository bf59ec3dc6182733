"""Masked language modelling: predict tokens that were hidden, from both sides (Devlin et al. 2019).

`inputs` is one column of texts, no `target`. The rows are joined and cut into blocks of `max_length` tokens
(what the model can take, at most 512, if the task does not say), special tokens included. Of each block
`mask_fraction` of the tokens (at least one) are predicted: 80 % of them are replaced by the mask token, 10 % by
a random token, 10 % left as they are. Which ones depends on `mask_seed` and the number of the block and on
nothing else, so every model is asked the same. For training, `collator(..., train=True)` draws anew each time,
from torch's default generator, which transformers.Trainer seeds, saves and restores.

An example is a block, and `limit` counts blocks. Only masked tokens enter the perplexity, which is therefore
not that of the text. Models: `AutoModelForMaskedLM`.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from effitrans.config import Config, Seed
from effitrans.errors import UsageError
from effitrans.tasks.encoding import max_length, need_tokenizer, special_tokens
from effitrans.tasks.kinds.base import Answer, Columns, Kind, texts, without_labels
from effitrans.tasks.likelihood import in_slices, token_losses
from effitrans.tasks.padding import IGNORED
from effitrans.tasks.predictions import Predictions
from effitrans.tasks.text_blocks import tokenize

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task

DEFAULT_BLOCK = 512


class MaskedLMOptions(Config):
    """Settings of a masked language modelling task."""

    separator: str = "\n\n"
    """What is put between two rows."""
    mask_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that are predicted."""
    mask_seed: Seed = 0
    """Seed of the masks."""


class MaskedLM(Kind):
    """Running text with hidden tokens."""

    name: ClassVar[str] = "masked-lm"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    hub_task: ClassVar[str] = "fill-mask"
    answer: ClassVar[Answer] = "masked-tokens"
    needs_mask_token: ClassVar[bool] = True
    default_metrics: ClassVar[tuple[str, ...]] = ("perplexity",)
    Options: ClassVar[type[Config]] = MaskedLMOptions
    has_target: ClassVar[bool] = False
    limit_counts_rows: ClassVar[bool] = False
    entry_per_row: ClassVar[bool] = False
    renews: ClassVar[bool] = True

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        tokenizer = need_tokenizer(task, processor)
        if tokenizer.mask_token_id is None:
            raise UsageError(
                f"the tokenizer has no mask token, and task {task.name!r} ({self.name}) needs one: "
                "use a model trained for masked language modelling, or make the kind causal-lm"
            )
        length = max_length(task, tokenizer, model) or DEFAULT_BLOCK
        length = length if task.max_length else min(length, DEFAULT_BLOCK)
        prefix, suffix = special_tokens(tokenizer)
        room = length - len(prefix) - len(suffix)
        if room < 1:
            raise UsageError(f"task {task.name!r}: blocks of {length} tokens have no room beside the special tokens")
        text = tokenize(task.options.separator.join(texts(task, rows, task.input_columns[0], first)), tokenizer)
        if not len(text.ids):
            raise UsageError(f"the text of task {task.name!r} has no tokens")
        inputs, labels = [], []
        for index, start in enumerate(range(0, len(text.ids), room)):
            block = np.concatenate([prefix, text.ids[start : start + room], suffix]).astype(np.int64)
            generator = np.random.default_rng([task.options.mask_seed, index])
            masked, wanted = mask(block, tokenizer, task.options.mask_fraction, generator)
            inputs.append(masked)
            labels.append(wanted)
        return {
            "input_ids": inputs,
            "attention_mask": [np.ones(len(block), dtype=np.int64) for block in inputs],
            "labels": labels,
            "length": [len(block) for block in inputs],
            "index": list(range(len(inputs))),
        }

    def encode(
        self, task: "Task", rows: "Dataset", processor: Any, model: nn.Module | None, limit: int | None
    ) -> "Dataset":
        import datasets

        column = task.input_columns[0]
        columns = self.encode_rows(task, {column: list(rows[column])}, 0, processor, model)
        return datasets.Dataset.from_dict({name: values[:limit] for name, values in columns.items()})

    def renew(self, task: "Task", features: list[dict[str, Any]], processor: Any) -> list[dict[str, Any]]:
        seed = int(torch.randint(2**62, ()).item())
        generator = np.random.default_rng(seed)
        renewed = []
        for feature in features:
            masked, labels = np.asarray(feature["input_ids"]), np.asarray(feature["labels"])
            original = np.where(labels == IGNORED, masked, labels)
            masked, labels = mask(original, processor, task.options.mask_fraction, generator)
            renewed.append({**feature, "input_ids": masked, "labels": labels})
        return renewed

    def predict_batch(
        self, task: "Task", model: nn.Module, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        losses: list[float] = []
        for part in in_slices(batch, model):
            losses += token_losses(model(**without_labels(part)).logits, part["labels"])
        return {"losses": losses, "weights": (batch["labels"] != IGNORED).sum(-1).tolist()}

    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        return Predictions(
            predictions=None,
            references=None,
            losses=np.asarray(outputs["losses"]),
            weights=np.asarray(outputs["weights"], dtype=np.float64),
        )


def mask(
    block: np.ndarray, tokenizer: Any, fraction: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hide some tokens of a block.

    Args:
        block: int64 [L] token ids.
        tokenizer: names the mask token and the special tokens, which are never hidden.
        fraction: share of the other tokens to predict; at least one is.
        generator: draws them.

    Returns:
        The input ids, and the labels: the token where it is to be predicted, -100 elsewhere. int64 [L] each.
    """
    special = [token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id]
    candidates = np.flatnonzero(~np.isin(block, special))
    labels = np.full_like(block, IGNORED)
    inputs = block.copy()
    if not len(candidates):
        return inputs, labels
    chosen = generator.permutation(candidates)[: max(1, round(fraction * len(candidates)))]
    labels[chosen] = block[chosen]
    draw = generator.random(len(chosen))
    inputs[chosen[draw < 0.8]] = tokenizer.mask_token_id
    randomized = chosen[(draw >= 0.8) & (draw < 0.9)]
    inputs[randomized] = generator.integers(len(tokenizer), size=len(randomized))
    return inputs, labels
