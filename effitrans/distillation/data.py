"""The inputs of both models: the student's encoding, with the columns that only teachers read."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from effitrans.checkpoint import processor_beside
from effitrans.distillation.teacher import PREFIX
from effitrans.errors import UsageError
from effitrans.tasks import load_task
from effitrans.tasks.encoding import model_limit
from effitrans.tasks.padding import BOOKKEEPING
from effitrans.tasks.task import names_task
from effitrans.training.config import Training
from effitrans.training.data import Collate, Data, resolve
from effitrans.training.trainer import accepted_inputs


def is_about_sentences(data: Any) -> bool:
    """Whether the data is a task with one answer for a whole text, which any tokenizer can encode."""
    return names_task(data) and load_task(data).behaviour.answers_whole_text


def resolve_for_both(
    data: Any,
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    processor: Any,
    config: Training,
    teacher_processor: Any = None,
) -> Data:
    """Encode the data for the student, with what only teachers read (`token_type_ids`, where a DistilBERT learns
    from a BERT) as further columns.

    Args:
        data, student, processor, config: as in `distill`.
        teachers: one, or several that read what the student reads.
        teacher_processor: the only teacher's tokenizer, where it is another one and the data `is_about_sentences`: the
            batches then hold all that the teacher reads besides, under names with a prefix.

    Raises:
        UsageError: as `training.data.resolve`; a teacher whose head does not fit the task; texts that are longer
            than a teacher can read, or that it would truncate elsewhere than the student.
    """
    processor = processor if processor is not None else processor_beside(student)
    found = resolve(data, student, processor, config)
    if teacher_processor is None:
        _check_lengths(found, student, teachers)
    if found.task is None:
        return found
    for teacher in teachers:
        found.task.behaviour.check_model(found.task, teacher)
    if teacher_processor is not None:
        (teacher,) = teachers
        other = resolve(data, teacher, teacher_processor, config)
        return replace(
            found,
            train=_beside(found.train, other.train),
            validation=_beside(found.validation, other.validation),
            collate=CollateBoth(found.collate, other.collate),
        )
    names: dict[str, None] = dict.fromkeys(getattr(processor, "model_input_names", ()))
    present = set(accepted_inputs(student, names))
    for teacher in teachers:
        lacking = sorted(set(accepted_inputs(teacher, names)) - present)
        if not lacking:
            continue
        present |= set(lacking)
        for_teacher = resolve(data, teacher, processor, config)
        found = replace(
            found,
            train=_with_columns(found.train, for_teacher.train, lacking),
            validation=_with_columns(found.validation, for_teacher.validation, lacking),
        )
    return found


def _check_lengths(data: Data, student: PreTrainedModel, teachers: Sequence[PreTrainedModel]) -> None:
    """Refuse texts that the student's positions allow and a teacher's do not."""
    limits = [limit for teacher in teachers if (limit := model_limit(teacher)) is not None]
    own = model_limit(student)
    if not limits or (own is not None and own <= min(limits)):
        return
    longest = max(_longest(data.train), _longest(data.validation))
    if longest > min(limits):
        raise UsageError(
            f"the data has an input of {longest} tokens, which the student can read, and the teacher takes "
            f"{min(limits)}: set the task's max_length to {min(limits)}, or cut the inputs"
        )


def _longest(rows: Any) -> int:
    """Tokens of the longest example; 0 where that is not known."""
    if rows is None or isinstance(rows, DataLoader):
        return 0
    if "length" in rows.column_names:
        return max(rows["length"])
    return max(map(len, rows["input_ids"])) if "input_ids" in rows.column_names else 0


class CollateBoth:
    """Collates what the student reads and what the teacher reads, each with its own padding."""

    def __init__(self, mine: Collate, theirs: Collate) -> None:
        self.mine, self.theirs = mine, theirs

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        own = [{name: value for name, value in row.items() if not name.startswith(PREFIX)} for row in rows]
        other = [{name.removeprefix(PREFIX): v for name, v in row.items() if name.startswith(PREFIX)} for row in rows]
        theirs = self.theirs([{**row, "labels": mine["labels"]} for row, mine in zip(other, own, strict=True)])
        return {**self.mine(own), **{PREFIX + name: value for name, value in theirs.items() if name != "labels"}}


def _beside(rows: Any, other: Any) -> Any:
    if rows is None:
        return None
    for name in other.column_names:
        if name not in BOOKKEEPING and name != "labels":
            rows = rows.add_column(PREFIX + name, list(other[name]))
    return rows


def _with_columns(rows: Any, source: Any, names: list[str]) -> Any:
    if rows is None:
        return None
    check_cuts(rows["length"], source["length"])
    for name in names:
        if name in source.column_names:
            rows = rows.add_column(name, list(source[name]))
    return rows


def check_cuts(mine: Iterable[int], theirs: Iterable[int]) -> None:
    """Refuse texts whose lengths in tokens show that one model takes less of them than the other."""
    if list(mine) != list(theirs):
        raise UsageError(
            "student and teacher take inputs of different lengths, so that long texts would be cut at different "
            "places: set the task's max_length to what both can take"
        )
