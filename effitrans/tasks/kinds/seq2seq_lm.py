"""Sequence to sequence: a text becomes another text, as in translation or summarization.

`inputs` is the source column, `target` the column of the texts to write. Sources and targets are truncated to
`max_length` and `max_target_length`; a target always ends in the end token. A batch holds `decoder_input_ids`
beside `labels` if the model is known, so that it can also run without labels. Answers are generated greedily
(`generation` of `predict` changes that), for at most
`max_new_tokens` or what the model can take; losses are those of the reference text
(teacher forcing). Models: `AutoModelForSeq2SeqLM`, encoder-decoders such as T5, BART or the base Transformer.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.tasks.encoding import encode_texts, model_limit, need_tokenizer, within_limit
from effitrans.tasks.kinds.base import Answer, Columns, Kind, texts, without_labels
from effitrans.tasks.likelihood import in_slices, token_losses
from effitrans.tasks.padding import IGNORED, pad_batch
from effitrans.tasks.predictions import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task


class Seq2SeqLMOptions(Config):
    """Settings of a sequence-to-sequence task."""

    prefix: str = ""
    """Put before every source, such as `translate English to German: ` for T5."""
    max_target_length: int | None = Field(None, ge=2, le=2**20)
    """Tokens after which a target is truncated; what the model can take if none."""
    max_new_tokens: int = Field(128, ge=1, le=2**20)
    """Tokens after which an answer is stopped."""


class Seq2SeqLM(Kind):
    """A text to a text."""

    name: ClassVar[str] = "seq2seq-lm"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    hub_task: ClassVar[str] = "translation"
    answer: ClassVar[Answer] = "text"
    generates: ClassVar[bool] = True
    form: ClassVar[str] = "encoder-decoder"
    default_metrics: ClassVar[tuple[str, ...]] = ("bleu", "chrf")
    target_is_text: ClassVar[bool] = True
    Options: ClassVar[type[Config]] = Seq2SeqLMOptions

    def check_model(self, task: "Task", model: nn.Module) -> None:
        config: Any = getattr(model, "config", None)
        if config is not None and not getattr(config, "is_encoder_decoder", False):
            raise UsageError(
                f"task {task.name!r} ({self.name}) needs an encoder-decoder and {type(model).__name__} is none: "
                "use a model such as T5 or BART, or the base Transformer of the form encoder-decoder"
            )

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        tokenizer = need_tokenizer(task, processor)
        sources = [task.options.prefix + text for text in texts(task, rows, task.input_columns[0], first)]
        columns: Columns = encode_texts(task, sources, None, tokenizer, model)
        limit = within_limit(task, "options.max_target_length", task.options.max_target_length, model)
        labels = self._targets(texts(task, rows, task.target_column, first), tokenizer, limit)
        return {
            **columns,
            "labels": labels,
            "length": [len(ids) for ids in columns["input_ids"]],
            "index": list(range(first, first + len(sources))),
        }

    def _targets(self, targets: list[str], tokenizer: Any, limit: int | None) -> list[list[int]]:
        encoded = tokenizer(text_target=targets, truncation=limit is not None, max_length=limit, verbose=False)
        end = tokenizer.eos_token_id
        labels = []
        for ids in encoded["input_ids"]:
            if end is not None and (not ids or ids[-1] != end):
                ids = [*(ids[: limit - 1] if limit else ids), end]
            labels.append(list(ids))
        return labels

    def collate(
        self, task: "Task", features: list[dict[str, Any]], pad_token_id: int, multiple: int | None, model: Any
    ) -> dict[str, Tensor]:
        batch = pad_batch(features, pad_token_id, multiple)
        if model is not None:
            batch["decoder_input_ids"] = decoder_inputs(batch["labels"], model, pad_token_id)
        return batch

    def predict_batch(
        self, task: "Task", model: Any, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        losses: list[float] = []
        for part in in_slices(batch, model):
            losses += token_losses(model(**without_labels(part)).logits, part["labels"])
        inputs = without_labels(batch, "decoder_input_ids")
        longest = min(task.options.max_new_tokens, (model_limit(model) or task.options.max_new_tokens + 1) - 1)
        settings = {"num_beams": 1, "do_sample": False, "max_new_tokens": longest, **generation}
        answers = model.generate(**inputs, **settings)
        return {
            "answers": processor.batch_decode(answers, skip_special_tokens=True),
            "losses": losses,
            "weights": (batch["labels"] != IGNORED).sum(-1).tolist(),
        }

    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        return Predictions(
            predictions=[answer.strip() for answer in outputs["answers"]],
            references=list(rows[task.target_column]),
            losses=np.asarray(outputs["losses"]),
            weights=np.asarray(outputs["weights"], dtype=np.float64),
        )


def decoder_inputs(labels: Tensor, model: Any, pad_token_id: int) -> Tensor:
    """What the decoder reads to write `labels` [B, L]: the same, one to the right, after the start token.

    Raises:
        UsageError: the model's config names no start token.
    """
    config = model.config
    start = getattr(config, "decoder_start_token_id", None)
    start = start if start is not None else getattr(config, "bos_token_id", None)
    if start is None:
        raise UsageError(f"{type(model).__name__} names no decoder_start_token_id: set it in the model's config")
    shifted = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, pad_token_id)
