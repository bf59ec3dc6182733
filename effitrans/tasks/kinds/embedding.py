"""Embedding: the cosine of the vectors of two texts says how alike they are.

`inputs` is two columns of texts, `target` a score. A text's vector is pooled from its last hidden states: as the folder
of the model says, if it is one of sentence-transformers, whose prompt, greatest length and lower case are honoured as
well; else their mean over its tokens; or as the task says (`pooling: max`), which sets aside what the folder says.
Models: `AutoModel`. In a batch of B pairs the first texts are rows 0 to B-1 and the second texts rows B to 2B-1, so
that a pass that only needs to see the model at work can feed it as it is. Loss: squared error between the cosine and
`target / scale`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from effitrans.checkpoint.sentence import SentenceSettings, sentence_settings
from effitrans.config import Config
from effitrans.tasks.encoding import encode_texts
from effitrans.tasks.kinds.base import Answer, Columns, Kind, numbers, texts, without_labels
from effitrans.tasks.padding import pad_batch
from effitrans.tasks.pooling import pool
from effitrans.tasks.predictions import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task

PAIR = "pair_"


class EmbeddingOptions(Config):
    """Settings of an embedding task."""

    pooling: Literal["mean", "first", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"] | None = None
    """How token vectors become one vector, with names of sentence-transformers (`first` is `cls`). None: as the model's
    folder says, else their mean."""
    scale: float = Field(1.0, gt=0)
    """What the target is divided by for the loss, so that it lies where cosines do (5 for scores from 0 to 5)."""


def settings_of(task: "Task | None", model: Any) -> SentenceSettings:
    """How a text becomes a vector: as the task says, else as the model's folder says, else by the mean."""
    asked = getattr(getattr(task, "options", None), "pooling", None)
    config = getattr(getattr(model, "module", model), "config", None)
    found = None if asked or config is None else sentence_settings(config)
    return found or SentenceSettings((asked or "mean",))


class Embedding(Kind):
    """A pair of texts to the cosine of their vectors."""

    name: ClassVar[str] = "embedding"
    auto_class: ClassVar[str] = "AutoModel"
    hub_task: ClassVar[str] = "sentence-similarity"
    answer: ClassVar[Answer] = "number"
    compares: ClassVar[bool] = True
    default_metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson")
    Options: ClassVar[type[Config]] = EmbeddingOptions
    input_counts: ClassVar[tuple[int, ...]] = (2,)

    def check_rows(self, task: "Task", rows: "Dataset", folder: Path) -> None:
        super().check_rows(task, rows, folder)
        numbers(task, {task.target_column: list(rows[task.target_column])}, task.target_column, 0)

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        settings = settings_of(task, model)

        def encoded(column: str) -> dict[str, list[list[int]]]:
            given = texts(task, rows, column, first)
            if settings.lower_case:
                given = [text.lower() for text in given]
            if settings.prompt:
                given = [settings.prompt + text for text in given]
            return encode_texts(task, given, None, processor, model, settings.max_length)

        left, right = map(encoded, task.input_columns)
        return {
            **left,
            **{PAIR + name: values for name, values in right.items()},
            "labels": numbers(task, rows, task.target_column, first),
            "length": [max(map(len, pair)) for pair in zip(left["input_ids"], right["input_ids"], strict=True)],
            "index": list(range(first, first + len(left["input_ids"]))),
        }

    def collate(
        self, task: "Task", features: list[dict[str, Any]], pad_token_id: int, multiple: int | None, model: Any
    ) -> dict[str, Tensor]:
        left = [{k: v for k, v in feature.items() if not k.startswith(PAIR) and k != "labels"} for feature in features]
        right = [{k.removeprefix(PAIR): v for k, v in feature.items() if k.startswith(PAIR)} for feature in features]
        labels = torch.tensor([feature["labels"] for feature in features], dtype=torch.float32)
        return {**pad_batch([*left, *right], pad_token_id, multiple), "labels": labels}

    def loss(self, task: "Task", model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        output = model(**without_labels(batch))
        wanted = batch["labels"] / task.options.scale
        cosines = self.cosines(settings_of(task, model), output.last_hidden_state, batch)
        return torch.nn.functional.mse_loss(cosines, wanted), output

    def cosines(self, settings: SentenceSettings, states: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The cosine [B] of each pair, of last hidden states [2B, L, hidden]."""
        vectors = pool(states.float(), batch["attention_mask"], settings.pooling)
        if settings.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        first, second = vectors.chunk(2)
        return torch.nn.functional.cosine_similarity(first, second, dim=-1)

    def predict_batch(
        self, task: "Task", model: nn.Module, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        states = model(**without_labels(batch)).last_hidden_state
        return {"cosines": self.cosines(settings_of(task, model), states, batch).tolist()}

    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        cosines = np.asarray(outputs["cosines"])
        references = numbers(task, {"target": list(rows[task.target_column])}, "target", 0)
        return Predictions(
            predictions=outputs["cosines"],
            references=references,
            losses=(cosines - np.asarray(references) / task.options.scale) ** 2,
            weights=np.ones(len(cosines)),
        )
