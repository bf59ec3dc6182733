"""From what a caller passes as data to what the Trainer takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction

from effitrans.checkpoint import processor_beside
from effitrans.errors import UsageError
from effitrans.tasks.batching import collator, encode
from effitrans.tasks.encoding import pad_token_id
from effitrans.tasks.forms import classify, rows_of_texts
from effitrans.tasks.padding import MAIN_INPUTS, Padding
from effitrans.training.config import Training

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks import Task

Collate = Callable[[Any], dict[str, Tensor]]
Renew = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
LossFunction = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Selection:
    """The figure by which the best state is chosen."""

    name: str = "eval_loss"
    greater_is_better: bool = False
    compute: Callable[[EvalPrediction], dict[str, float]] | None = None
    """From gathered logits to the figure; None where the evaluation loss is the figure."""


@dataclass(frozen=True)
class Data:
    """Encoded examples, ready for the Trainer."""

    train: "Dataset | DataLoader"
    validation: "Dataset | None"
    collate: Collate
    selection: Selection = Selection()
    loss: LossFunction | None = None
    """(model, batch) -> (mean loss, outputs); None where the model's own forward pass computes it."""
    renew: Renew | None = None
    """Training examples -> the same with random choices made anew; None where none are made."""
    task: "Task | None" = None


def resolve(data: Any, model: Any, processor: Any, config: Training) -> Data:
    """Encode and check the data.

    Args:
        data: in any form of `effitrans.tasks.forms` but a stream, which has no length. A mapping of splits has "train"
            and, optionally, "validation".
        model: the model to be trained.
        processor: the tokenizer or image processor of a task or of texts. Default: the one beside the model's weights.
        config: for the limits on the number of examples.

    Raises:
        UsageError: data of another type, without an example, or of texts that are not encoded.
    """
    form, value = classify(data)
    if form in ("task", "texts", "splits") and processor is None:
        processor = processor_beside(model)
    if form == "task":
        found = _from_task(value, model, processor, config)
    elif form in ("loader", "batches"):
        return _from_batches(value, config)
    else:
        splits = value if form == "splits" else {"train": value}
        if "train" not in splits:
            raise UsageError(
                f"cannot train on a {type(data).__name__} of {', '.join(map(str, splits)) or 'nothing'}: expected "
                "encoded rows as 'train' and, optionally, 'validation', or the keys of a task, such as 'kind'"
            )
        if classify(splits["train"]).form in ("loader", "batches") and splits.get("validation") is None:
            return _from_batches(classify(splits["train"]).value, config)
        found = Data(
            train=_limited(_encoded(splits["train"], model, processor), config.max_train_examples),
            validation=_limited(_encoded(splits.get("validation"), model, processor), config.max_eval_examples),
            collate=Padding(pad_token_id(processor, model)),
        )
    for name, part in (("training", found.train), ("validation", found.validation)):
        if part is not None and len(part) == 0:
            raise UsageError(f"the {name} data is empty: training needs at least one example")
    return found


def _encoded(data: Any, model: Any, processor: Any) -> Any:
    """Rows that the Trainer can draw from, with something that the model reads; None where there is no such split."""
    if data is None:
        return None
    form, rows = classify(data)
    if form == "texts":
        rows = rows_of_texts(rows, processor, model)
    elif form not in ("rows", "dataset"):
        raise UsageError(
            f"cannot train on a {type(data).__name__} here: pass a task, a datasets.Dataset or list of encoded rows "
            "(or {'train': ..., 'validation': ...} of such), or a DataLoader or list of batches alone. Rows that come "
            "one after another, without a length, can be put into a list"
        )
    rows = _listed(rows) if isinstance(rows, list) else rows
    inputs = {*MAIN_INPUTS, getattr(model, "main_input_name", "input_ids")}
    if len(rows) and not inputs & set(rows[0]):  # what a transform makes of a row counts, and not its columns
        raise UsageError(
            f"the rows hold {', '.join(rows[0])} and nothing that the model reads ({', '.join(sorted(inputs))}): "
            "encode texts with the tokenizer, as in rows.map(lambda row: tokenizer(row['text'], truncation=True)), "
            "or pass a task, which names the columns"
        )
    return rows


def _listed(rows: Sequence[Mapping[str, Any]]) -> "Dataset":
    import datasets
    import pyarrow

    try:
        return datasets.Dataset.from_list([dict(row) for row in rows])
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise UsageError(f"the rows do not fit together: {error}") from None


def _from_batches(given: "DataLoader | list[Mapping[str, Any]]", config: Training) -> Data:
    ignored = {"batch_size", "max_train_examples", "max_eval_examples", "eval_every", "early_stopping"}
    if refused := sorted(ignored & config.model_fields_set):
        raise UsageError(
            f"{', '.join(refused)} cannot be honoured for a DataLoader or list of batches, which decides on its own "
            "batches and brings no validation data: leave them out, or pass a datasets.Dataset or a task"
        )
    loader = given if isinstance(given, DataLoader) else DataLoader(given, batch_size=None)  # type: ignore[arg-type]
    if len(loader) == 0:
        raise UsageError("the DataLoader is empty: training needs at least one batch")
    return Data(train=loader, validation=None, collate=Padding(0))


def _from_task(task: "Task", model: Any, processor: Any, config: Training) -> Data:
    validation = None
    if "validation" in task.splits:
        validation = encode(task, "validation", processor, model=model, limit=config.max_eval_examples)
    return Data(
        train=encode(task, "train", processor, model=model, limit=config.max_train_examples),
        validation=validation,
        collate=collator(task, processor, model=model),
        selection=_selection(task),
        loss=partial(task.behaviour.loss, task),
        renew=partial(task.behaviour.renew, task, processor=processor) if task.behaviour.renews else None,
        task=task,
    )


def _selection(task: "Task") -> Selection:
    """The task's first metric where the logits are enough to compute it; else the loss."""
    if task.behaviour.problem_type is None or not task.metrics:
        return Selection()
    from effitrans.tasks.metrics import describe, metric

    name = task.metrics[0]
    measure, higher = metric(name), describe(name).higher_is_better
    if not set(getattr(measure, "inputs", ())) <= {"predictions", "references", "scores"}:
        return Selection()
    worst = float("-inf") if higher else float("inf")

    def compute(gathered: EvalPrediction) -> dict[str, float]:
        logits, references = np.asarray(gathered.predictions), np.asarray(gathered.label_ids)
        fields = {
            "scores": logits,
            "references": references,
            "predictions": task.behaviour.from_logits(logits),
        }
        value = measure.point(measure.statistics(*(fields[field] for field in measure.inputs)))
        return {name: worst if np.isnan(value) else value}

    return Selection(f"eval_{name}", higher, compute)


def _limited(rows: Any, limit: int | None) -> Any:
    return rows if rows is None or limit is None else rows.select(range(min(limit, len(rows))))


def lengths_of(rows: "Dataset") -> list[int] | None:
    """The length of each example in tokens: the column `length`, else of `input_ids`; None for data of one length."""
    if "length" in rows.column_names:
        lengths = list(rows["length"])
    elif "input_ids" in rows.column_names:
        lengths = [len(tokens) for tokens in rows["input_ids"]]
    else:
        return None
    return lengths if len(set(lengths)) > 1 else None


class SeededRows:
    """Encoded rows, with random choices (which tokens are masked) that are a function of seed, epoch and example.

    Batches are read one step ahead of the model, so the global random state that a checkpoint holds is already past
    them; a resumed run would mask other tokens.

    Args:
        rows: encoded.
        renew: draws the choices from torch's default generator; None: there are none.
        seed: of the choices.
    """

    def __init__(self, rows: "Dataset", renew: Renew | None = None, seed: int = 0) -> None:
        self.rows, self.renew, self.seed, self.epoch = rows, renew, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random choices are made."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        columns = self.rows[indices]
        rows = [{name: values[n] for name, values in columns.items()} for n in range(len(indices))]
        if self.renew is None:
            return rows
        renewed = []
        with torch.random.fork_rng(devices=[]):
            for index, row in zip(indices, rows, strict=True):
                torch.manual_seed(((self.seed * 1_000_003 + self.epoch) * 1_000_003 + index) % 2**63)
                renewed += self.renew([row])
        return renewed
