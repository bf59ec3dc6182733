"""Token classification: every word of a sentence has a tag, such as a named entity or a part of speech.

`inputs` is a column of lists of words, `target` one of lists of tags (names or ids), one a word. A word's tag
is asked of its first token; its other tokens are ignored, in the loss and in the answer. A tag of None (null)
or -100 asks nothing. Words that the truncation cut off are answered with `O` (the first tag, where there is no
`O`). Models: `AutoModelForTokenClassification`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from effitrans.errors import UsageError
from effitrans.tasks.encoding import encode_words
from effitrans.tasks.kinds.base import Answer, Columns, Kind, row_name, without_labels
from effitrans.tasks.labels import LabelIds
from effitrans.tasks.padding import IGNORED
from effitrans.tasks.predictions import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task


class TokenClassification(Kind):
    """A list of words to a list of tags."""

    name: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    hub_task: ClassVar[str] = "token-classification"
    answer: ClassVar[Answer] = "tags"
    default_metrics: ClassVar[tuple[str, ...]] = ("entity_f1", "accuracy")
    has_labels: ClassVar[bool] = True

    def check_rows(self, task: "Task", rows: "Dataset", folder: Path) -> None:
        columns = {name: list(rows[name]) for name in task.columns}
        self._words(task, columns, 0)
        self._tags(task, columns[task.target_column], 0)

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        words = self._words(task, rows, first)
        tags = self._tags(task, rows[task.target_column], first)
        columns, word_ids = encode_words(task, words, processor, model)
        labels = []
        for row_tags, row_words in zip(tags, word_ids, strict=True):
            before = [None, *row_words[:-1]]
            labels.append(
                [
                    row_tags[word] if word is not None and word != previous else IGNORED
                    for word, previous in zip(row_words, before, strict=True)
                ]
            )
        return {
            **columns,
            "labels": labels,
            "length": [len(ids) for ids in columns["input_ids"]],
            "index": list(range(first, first + len(words))),
        }

    def _words(self, task: "Task", rows: Columns, first: int) -> list[list[str]]:
        column, target = task.input_columns[0], task.target_column
        for offset, (words, tags) in enumerate(zip(rows[column], rows[target], strict=True)):
            where = row_name(task, first + offset)
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise UsageError(f"{where} has {words!r} in {column!r}: expected a list of words")
            if not isinstance(tags, list) or len(tags) != len(words):
                received = f"{len(tags)} tags" if isinstance(tags, list) else repr(tags)
                raise UsageError(
                    f"{where} has {len(words)} words and {received} in {target!r}: expected one tag a word"
                )
        return rows[column]

    def _tags(self, task: "Task", tags: list[list[Any]], first: int) -> list[list[int]]:
        names = task.label_names()
        assert names is not None
        to_id = LabelIds(names)
        return [
            [IGNORED if tag in (None, IGNORED) else to_id(tag, row_name(task, first + offset)) for tag in row]
            for offset, row in enumerate(tags)
        ]

    def predict_batch(
        self, task: "Task", model: nn.Module, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        logits, labels = model(**without_labels(batch)).logits.float(), batch["labels"]
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        ).sum(-1)
        answers = logits.argmax(-1)
        return {
            "tags": [row[asked].tolist() for row, asked in zip(answers, labels != IGNORED, strict=True)],
            "losses": losses.double().tolist(),
            "weights": (labels != IGNORED).sum(-1).tolist(),
        }

    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        names = task.label_names()
        assert names is not None
        tags = self._tags(task, list(rows[task.target_column]), 0)
        references = [[names[tag] for tag in row if tag != IGNORED] for row in tags]
        rest = "O" if "O" in names else names[0]
        predictions = [
            [names[tag] for tag in answered] + [rest] * (len(reference) - len(answered))
            for answered, reference in zip(outputs["tags"], references, strict=True)
        ]
        return Predictions(
            predictions=predictions,
            references=references,
            losses=np.asarray(outputs["losses"]),
            weights=np.asarray(outputs["weights"], dtype=np.float64),
        )
