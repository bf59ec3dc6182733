"""Entity-level F1 of tag sequences in the BIO, IO or BILOU/BIOES scheme (the CoNLL-2000 rules for broken chunks)."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf

from effitrans.errors import UsageError
from effitrans.tasks.metrics.base import ExampleMetric

if TYPE_CHECKING:
    from effitrans.tasks import Task

CHUNK_TAG = re.compile(r"O|[BIELMSU]-.+", re.DOTALL)


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield (type, first, end) of each chunk. An `I-` that follows nothing of its type opens a chunk.

    >>> list(entities(["B-PER", "I-PER", "O", "I-LOC"]))
    [('PER', 0, 2), ('LOC', 3, 4)]
    """
    start, kind = 0, ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, label = tag.partition("-") if tag != "O" else ("O", "", "")
        goes_on = bool(kind) and label == kind and prefix in "IELM"
        if kind and not goes_on:
            yield kind, start, index
            kind = ""
        if not goes_on and prefix != "O":
            start, kind = index, label
        if kind and prefix in ("E", "L", "S", "U"):
            yield kind, start, index + 1
            kind = ""


class EntityF1(ExampleMetric):
    """Micro-averaged F1 over entities; one counts when its type and both ends are right."""

    name = "entity_f1"

    def check_task(self, task: "Task") -> None:
        odd = [name for name in task.label_names() or () if not CHUNK_TAG.fullmatch(name)]
        if odd:
            raise UsageError(
                f"metric {self.name!r} of task {task.name!r} counts chunks of tags such as B-PER, I-PER and O, and the "
                f"label {odd[0]!r} is none: name `metrics: [accuracy, f1_macro]`, or the tags in the order of their "
                "ids in `labels`"
            )

    def arrow_types(self) -> Features:
        return Features({name: ListOf(Value("string")) for name in self.inputs})

    def statistics(self, *inputs: Any) -> np.ndarray:
        rows = []
        for predicted_tags, reference_tags in zip(*inputs, strict=True):
            predicted, actual = set(entities(predicted_tags)), set(entities(reference_tags))
            rows.append((len(predicted & actual), len(predicted), len(actual)))
        return np.array(rows, dtype=float).reshape(-1, 3)

    def value(self, sums: np.ndarray) -> np.ndarray:
        return 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1e-12)
