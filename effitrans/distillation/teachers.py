"""Further teachers: how they are loaded, and what they must share with the first.

What a student learns from several teachers is the weighted mean of what it would learn from each. For the divergence
of `response` at temperature 1 that is, up to a constant, the divergence from the mean of their distributions (You et
al. 2017, section 3). States of layers belong to one teacher and are not averaged.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.checkpoint.accepting import as_model
from effitrans.distillation.config import TaughtTraining
from effitrans.distillation.student import check_compatible
from effitrans.errors import UsageError


def further_teachers(
    student: PreTrainedModel,
    config: TaughtTraining,
    given: Mapping[str, PreTrainedModel] | None = None,
    processor: Any = None,
) -> dict[str, PreTrainedModel]:
    """The teachers that `config.teachers` names, loaded where they are not given, and checked.

    Args:
        student: the student.
        config: names, and thus the order.
        given: name -> model; None: all are loaded, each with the head it was saved with.
        processor: the student's tokenizer, which makes the inputs of all.

    Raises:
        UsageError: models given under other names, no such model, another tokenizer, other labels.
    """
    if given is not None and set(given) != set(config.teachers):
        raise UsageError(
            f"teachers given as models ({', '.join(sorted(given)) or 'none'}) are not those that the settings weigh "
            f"({', '.join(sorted(config.teachers)) or 'none'}): name the same in both"
        )
    found = {}
    for name in config.teachers:
        model = as_model(name if given is None else given[name], f"teacher {name}")
        theirs = checkpoint.load_processor(name) if given is None else None
        try:
            check_compatible(student, model, processor, theirs)
        except UsageError as error:
            raise UsageError(f"teacher {name}: {error}") from error
        found[name] = model
    return found


def shares(config: TaughtTraining) -> tuple[float, ...]:
    """The weight of each teacher, the first first; their sum is 1.

    >>> from effitrans import Distillation
    >>> shares(Distillation(teachers={"other": 3.0}))
    (0.25, 0.75)
    """
    weights = (1.0, *config.teachers.values())
    return tuple(weight / sum(weights) for weight in weights)
