"""The inputs of both models: those the student's encoding lacks and the teacher reads are added."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.training.config import Training
from effitrans.training.data import Data, resolve
from effitrans.training.trainer import accepted_inputs


def resolve_for_both(
    data: Any, student: PreTrainedModel, teacher: PreTrainedModel, processor: Any, config: Training
) -> Data:
    """Encode the data for the student, with what only the teacher reads (`token_type_ids`, where a DistilBERT learns
    from a BERT) as further columns.

    Raises:
        UsageError: as `training.data.resolve`; texts that the teacher would truncate elsewhere than the student.
    """
    found = resolve(data, student, processor, config)
    if found.task is None:
        return found
    names: dict[str, None] = dict.fromkeys(getattr(processor, "model_input_names", ()))
    lacking = sorted(set(accepted_inputs(teacher, names)) - set(accepted_inputs(student, names)))
    if not lacking:
        return found
    for_teacher = resolve(data, teacher, processor, config)
    return replace(
        found,
        train=_with_columns(found.train, for_teacher.train, lacking),
        validation=_with_columns(found.validation, for_teacher.validation, lacking),
    )


def _with_columns(rows: Any, source: Any, names: list[str]) -> Any:
    if rows is None:
        return None
    if list(rows["length"]) != list(source["length"]):
        raise UsageError(
            "student and teacher take inputs of different lengths, so that long texts would be cut at different "
            "places: set the task's max_length to what both can take"
        )
    for name in names:
        if name in source.column_names:
            rows = rows.add_column(name, list(source[name]))
    return rows
