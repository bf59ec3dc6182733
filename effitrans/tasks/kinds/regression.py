"""Regression: a text, or a pair of texts, has a number, such as how similar two sentences are.

`inputs` is one column or two, `target` holds numbers, which are not rescaled. Models:
`AutoModelForSequenceClassification` with one output. Loss: squared error.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from effitrans.errors import UsageError
from effitrans.tasks.encoding import encode_texts
from effitrans.tasks.kinds.base import Answer, Columns, Kind, numbers, texts, without_labels
from effitrans.tasks.predictions import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task


class Regression(Kind):
    """A text or a pair of texts to a number."""

    name: ClassVar[str] = "regression"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    hub_task: ClassVar[str] = "text-classification"
    answer: ClassVar[Answer] = "number"
    default_metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman")
    input_counts: ClassVar[tuple[int, ...]] = (1, 2)
    problem_type: ClassVar[str | None] = "regression"

    def check_rows(self, task: "Task", rows: "Dataset", folder: Path) -> None:
        super().check_rows(task, rows, folder)
        numbers(task, {task.target_column: list(rows[task.target_column])}, task.target_column, 0)

    def config_overrides(self, task: "Task") -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": self.problem_type}

    def check_model(self, task: "Task", model: nn.Module) -> None:
        super().check_model(task, model)
        outputs = getattr(getattr(model, "config", None), "num_labels", 1)
        if outputs != 1:
            raise UsageError(
                f"the model's head has {outputs} outputs and the regression task {task.name!r} needs 1: "
                "use a model trained for this task, or train one (`effitrans train`)"
            )

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        inputs = [texts(task, rows, column, first) for column in task.input_columns]
        columns: Columns = encode_texts(task, inputs[0], inputs[1] if len(inputs) == 2 else None, processor, model)
        return {
            **columns,
            "labels": numbers(task, rows, task.target_column, first),
            "length": [len(ids) for ids in columns["input_ids"]],
            "index": list(range(first, first + len(inputs[0]))),
        }

    def from_logits(self, logits: np.ndarray) -> np.ndarray:
        return logits.reshape(len(logits))

    def predict_batch(
        self, task: "Task", model: nn.Module, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        return {
            "scores": model(**without_labels(batch)).logits.float()[:, 0].tolist(),
            "labels": batch["labels"].tolist(),
        }

    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        scores = np.asarray(outputs["scores"], dtype=np.float32)
        references = numbers(task, {"target": list(rows[task.target_column])}, "target", 0)
        return Predictions(
            predictions=scores.tolist(),
            references=references,
            scores=scores[:, None],
            losses=(scores.astype(np.float64) - np.asarray(references)) ** 2,
            weights=np.ones(len(scores)),
        )
