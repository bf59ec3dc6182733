"""Sequence classification: a text, or a pair of texts, has one of several classes.

`inputs` is one column or two, `target` holds class ids or names. Long texts are truncated. Models:
`AutoModelForSequenceClassification`; decoders read the last token, for which they need to know the padding.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from effitrans.tasks.encoding import encode_texts
from effitrans.tasks.kinds.base import Columns, texts
from effitrans.tasks.kinds.classification import Classification

if TYPE_CHECKING:
    from effitrans.tasks.task import Task


class SequenceClassification(Classification):
    """A text or a pair of texts to a class."""

    name: ClassVar[str] = "sequence-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    hub_task: ClassVar[str] = "text-classification"
    input_counts: ClassVar[tuple[int, ...]] = (1, 2)

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        inputs = [texts(task, rows, column, first) for column in task.input_columns]
        columns: Columns = encode_texts(task, inputs[0], inputs[1] if len(inputs) == 2 else None, processor, model)
        return {
            **columns,
            "labels": self.label_ids(task, rows, first),
            "length": [len(ids) for ids in columns["input_ids"]],
            "index": list(range(first, first + len(inputs[0]))),
        }
