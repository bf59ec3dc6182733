"""Single-label classification, shared by the kinds that read text and those that read images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from effitrans.errors import UsageError
from effitrans.tasks.kinds.base import Answer, Columns, Kind, row_name, without_labels
from effitrans.tasks.labels import LabelIds
from effitrans.tasks.predictions import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task


class Classification(Kind):
    """One class an example; the model gives logits [B, C]. Loss: cross-entropy."""

    answer: ClassVar[Answer] = "class"
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro")
    has_labels: ClassVar[bool] = True
    problem_type: ClassVar[str | None] = "single_label_classification"

    def check_rows(self, task: "Task", rows: "Dataset", folder: Path) -> None:
        super().check_rows(task, rows, folder)
        column = task.target_column
        if not hasattr(rows.features[column], "dtype") or isinstance(rows[0][column], list | dict):
            raise UsageError(
                f"{row_name(task, 0)} has {rows[0][column]!r} in {column!r}: a {self.name} task takes one class an "
                "example, and there is no kind for several. Make a task of each label, or name one class in each row"
            )
        names = task.label_names()
        assert names is not None
        to_id = LabelIds(names)
        if any(to_id.find(value) is None for value in rows.unique(column)):
            self.label_ids(task, {column: list(rows[column])}, 0)

    def label_ids(self, task: "Task", rows: Columns, first: int) -> list[int]:
        """The class ids of some rows, the first of which has the number `first`."""
        names = task.label_names()
        assert names is not None
        to_id = LabelIds(names)
        return [to_id(value, row_name(task, first + offset)) for offset, value in enumerate(rows[task.target_column])]

    def from_logits(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(-1)

    def predict_batch(
        self, task: "Task", model: nn.Module, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        logits = model(**without_labels(batch)).logits.float()
        losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        return {
            "scores": list(logits.cpu().numpy()),
            "losses": losses.double().tolist(),
            "labels": batch["labels"].tolist(),
        }

    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        scores = np.stack(outputs["scores"]).astype(np.float32)
        return Predictions(
            predictions=scores.argmax(-1).tolist(),
            references=outputs["labels"],
            scores=scores,
            losses=np.asarray(outputs["losses"]),
            weights=np.ones(len(scores)),
        )
