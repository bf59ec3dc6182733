"""What every task kind provides, and the defaults that most of them share.

A kind knows how rows become model inputs (`encode_rows`), how those become a padded batch (`collate`), what
the loss is, what a model's output means (`predict_batch`), and how outputs become one entry an example
(`gather`). The file of a kind holds all that is particular to it.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.tasks.padding import pad_batch
from effitrans.tasks.predictions import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task

Columns = dict[str, list[Any]]
"""Column name -> one value a row."""


TEXT_TYPES = ("string", "large_string")
"""What `datasets` calls the types of texts."""


Answer = Literal["class", "number", "tags", "span", "tokens", "masked-tokens", "text"]
"""What a model answers an example with: one class or number, a tag per word, a span of the input, the tokens of the
running text itself (all of them, or the masked ones), or a text of its own."""


class NoOptions(Config):
    """A kind without settings of its own."""


class Kind(ABC):
    """A task kind. Its instances hold no state; the one in `KINDS` serves every task."""

    name: ClassVar[str]
    """Its name in a task's YAML."""
    auto_class: ClassVar[str]
    """The Auto class of transformers that builds the model."""
    hub_task: ClassVar[str]
    """What the hub calls such tasks."""
    answer: ClassVar[Answer]
    """What the model answers with, which decides the metrics."""
    generates: ClassVar[bool] = False
    """Whether its models write texts with `generate`."""
    compares: ClassVar[bool] = False
    """Whether the two inputs of a row are encoded apart, to be compared."""
    form: ClassVar[str] = "encoder"
    """The form of the base Transformer that suits it."""
    default_metrics: ClassVar[tuple[str, ...]]
    """The metrics of a task that names none."""
    default_tokenizer: ClassVar[str | None] = "bpe"
    """How the tokenizer is made for a task that does not say; None if the kind reads no text."""
    Options: ClassVar[type[Config]] = NoOptions
    """The config of the task's `options`."""
    input_counts: ClassVar[tuple[int, ...]] = (1,)
    """How many input columns it can have."""
    has_target: ClassVar[bool] = True
    """Whether there is a target column."""
    target_is_text: ClassVar[bool] = False
    """Whether the target is a text as it stands, which may be empty and look like a number."""
    has_labels: ClassVar[bool] = False
    """Whether the target is one of a set of classes."""
    needs_mask_token: ClassVar[bool] = False
    """Whether the tokenizer must have a mask token."""
    limit_counts_rows: ClassVar[bool] = True
    """Whether an example is a row; if not, it is a block of text, and `limit` counts blocks."""
    entry_per_row: ClassVar[bool] = True
    """Whether a row gives one entry of the encoded data set, whatever the other rows are."""
    renews: ClassVar[bool] = False
    """Whether `renew` does something."""
    problem_type: ClassVar[str | None] = None
    """What the outputs of a model's head mean, as transformers names it, where the kind has such a head."""

    @property
    def reads_text(self) -> bool:
        """Whether its models read text, and not images."""
        return self.default_tokenizer is not None

    @property
    def answers_whole_text(self) -> bool:
        """Whether a text has one answer, however it is cut into tokens."""
        return self.reads_text and self.answer in ("class", "number")

    @property
    def labels_are_tokens(self) -> bool:
        """Whether the labels of a batch are token ids."""
        return self.answer in ("tokens", "masked-tokens", "text")

    def check_task(self, task: "Task") -> None:
        """Refuse a definition that cannot be, or that holds settings this kind would ignore."""
        counts = self.input_counts
        if len(task.input_columns) not in counts:
            expected = " or ".join(map(str, counts))
            raise UsageError(f"a {self.name} task takes {expected} `inputs` column(s), not {len(task.input_columns)}")
        if self.has_target and not task.target:
            raise UsageError(f"a {self.name} task needs `target`, the column of the answers")
        if not self.has_target and task.target:
            raise UsageError(
                f"a {self.name} task has no `target`: its text is what it predicts. Remove {task.target!r}"
            )
        if not self.has_labels and task.labels is not None:
            raise UsageError(f"a {self.name} task has no classes: remove `labels`")
        if not self.reads_text and (task.tokenizer or task.max_length):
            raise UsageError(f"a {self.name} task reads no text: remove `tokenizer` and `max_length`")

    def check_rows(self, task: "Task", rows: "Dataset", folder: Path) -> None:
        """Refuse rows of which one cannot be used, all of them being checked once and before anything runs.

        Args:
            task: the task.
            rows: all rows of a split.
            folder: where paths within them start.

        Raises:
            UsageError: what is wrong, with the number of the row.
        """
        texts_of = task.input_columns if self.reads_text else ()
        for column in (*texts_of, *([task.target_column] if self.target_is_text else [])):
            if getattr(rows.features[column], "dtype", None) not in TEXT_TYPES:
                texts(task, {column: list(rows[column])}, column, 0)

    def open_rows(self, task: "Task", rows: "Dataset", folder: Path) -> "Dataset":
        """The rows with what they refer to: a kind whose rows name other files, relative to `folder`, opens them."""
        return rows

    def config_overrides(self, task: "Task") -> dict[str, Any]:
        """What the model's config must say for its head to fit the task."""
        names = task.label_names()
        if names is None:
            return {}
        problem = {} if self.problem_type is None else {"problem_type": self.problem_type}
        return {
            **problem,
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }

    def check_model(self, task: "Task", model: nn.Module) -> None:
        """Refuse a model whose head does not fit the task.

        Raises:
            UsageError: another number of classes, the same classes in another order, or another `problem_type`.
        """
        config: Any = getattr(model, "config", None)
        if config is None:
            return
        own = getattr(config, "problem_type", None)
        if None not in (self.problem_type, own) and own != self.problem_type:
            raise UsageError(
                f"the model's config has the problem_type {own}, and task {task.name!r} ({self.name}) is of the "
                f"problem_type {self.problem_type}: use a model trained for this task, or train one (`effitrans train`)"
            )
        names = task.label_names()
        if names is None:
            return
        if config.num_labels != len(names):
            raise UsageError(
                f"the model's head has {config.num_labels} labels and task {task.name!r} has {len(names)} "
                f"({', '.join(names[:20])}): use a model trained for this task, or train one (`effitrans train`)"
            )
        named = [str((config.id2label or {}).get(index, "")).lower() for index in range(len(names))]
        ours = [name.lower() for name in names]
        if named != ours and sorted(named) == sorted(ours):
            raise UsageError(
                f"the model's labels are {', '.join(named)} and those of task {task.name!r} are {', '.join(ours)}: "
                "the same in another order. Put the task's `labels` in the order of the model's"
            )

    @abstractmethod
    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        """Model inputs of some rows.

        Args:
            task: the task.
            rows: its columns; a part of a split.
            first: the number of the first of these rows within the split, from 0.
            processor: tokenizer or image processor.
            model: the model that will read them, if known: its limits and the names of its inputs are honoured.

        Returns:
            Columns as `forward` names them with `labels`, and those of `padding.BOOKKEEPING`: `index` (row of
            the split, from 0) and `length` (tokens). A row may give several entries.
        """

    def encode(
        self, task: "Task", rows: "Dataset", processor: Any, model: nn.Module | None, limit: int | None
    ) -> "Dataset":
        """Model inputs of the rows of a split. `limit` is applied to the rows already, where it counts rows."""
        import datasets

        parts = []
        for first in range(0, len(rows), 2000):
            columns = rows[first : first + 2000]
            assert isinstance(columns, dict)
            parts.append(datasets.Dataset.from_dict(self.encode_rows(task, columns, first, processor, model)))
        return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]

    def renew(self, task: "Task", features: list[dict[str, Any]], processor: Any) -> list[dict[str, Any]]:
        """Entries as training should see them this time, where that differs from time to time."""
        return features

    def collate(
        self, task: "Task", features: list[dict[str, Any]], pad_token_id: int, multiple: int | None, model: Any
    ) -> dict[str, Tensor]:
        """Pad entries of an encoded data set into a batch of tensors."""
        return pad_batch(features, pad_token_id, multiple)

    def loss(self, task: "Task", model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """The training loss of a batch (a scalar) and the model's output."""
        output = model(**batch)
        return output.loss, output

    def from_logits(self, logits: np.ndarray) -> np.ndarray:
        """Predictions [N] of the logits of a head whose meaning `problem_type` names."""
        raise NotImplementedError(f"a {self.name} task has no such head")

    @abstractmethod
    def predict_batch(
        self, task: "Task", model: nn.Module, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        """Run the model on a batch and return what `gather` needs, one value an entry, on the CPU."""

    @abstractmethod
    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        """The outputs of all entries, in the order of `encoded`, as one entry an example.

        Args:
            task: the task.
            rows: the raw rows.
            encoded: what `encode` made of them.
            outputs: what `predict_batch` returned, joined and in the order of `encoded`.
            processor: tokenizer or image processor.
        """


def without_labels(batch: dict[str, Tensor], *more: str) -> dict[str, Tensor]:
    """The batch as a model takes it when no loss is wanted."""
    return {name: tensor for name, tensor in batch.items() if name != "labels" and name not in more}


def row_name(task: "Task", number: int) -> str:
    """How messages name a row: counted from 1, as editors do."""
    return f"row {number + 1} of task {task.name!r}"


def texts(task: "Task", rows: Columns, column: str, first: int) -> list[str]:
    """The texts of a column.

    Raises:
        UsageError: a value is not a text.
    """
    for offset, value in enumerate(rows[column]):
        if not isinstance(value, str):
            raise UsageError(
                f"{row_name(task, first + offset)} has {value!r} in {column!r}: expected a text. "
                "Name a text column in `inputs`, or mend the row"
            )
    return rows[column]


def numbers(task: "Task", rows: Columns, column: str, first: int) -> list[float]:
    """The values of a column as floats.

    Raises:
        UsageError: a value is not a finite number.
    """
    values = []
    for offset, value in enumerate(rows[column]):
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not math.isfinite(number):
            raise UsageError(f"{row_name(task, first + offset)} has {value!r} in {column!r}: expected a number")
        values.append(number)
    return values
