"""The settings of a distillation run."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from effitrans.distillation.augmentation.config import Augmentation
from effitrans.distillation.cache.config import TeacherCache
from effitrans.distillation.former import refuse_former
from effitrans.distillation.objectives import OBJECTIVES, Objective
from effitrans.distillation.objectives.response import SoftenedConfig
from effitrans.distillation.objectives.settings import Objectives
from effitrans.distillation.sequences import SequenceLevel
from effitrans.errors import UsageError
from effitrans.training.config import Training

RESPONSE: Any = "response"
"""The default of `objective`."""

_ON_OR_OFF = {True: {}, False: None}


def _switch(settings: Any) -> BeforeValidator:
    """Takes `true` as the default settings of a nested config, and `false` as null."""
    return BeforeValidator(
        lambda value: _ON_OR_OFF[value] if isinstance(value, bool) else value,
        json_schema_input_type=settings | bool | None,
    )


class TaughtTraining(Training):
    """Training under a teacher: what `distill` and the second stage of `linearize` share. The loss is
    (1 - alpha) * labels + alpha * sum of weighted objectives.
    """

    verb: ClassVar[str] = ""

    objective: Objectives = RESPONSE
    """What is learned from the teacher. Predictions: `response`, `logit_mse`, `dkd`, `sentence_embedding`; states of
    layers: `feature`, `cosine`, `pkd`, `embedding_layer`, `feed_forward`; relations: `attention`, `relation`, `rkd`.
    Several with a comma or as a list, weighted as a mapping `{response: 1, feature: 0.5}`, with settings of their own
    as `{relation: {weight: 1, heads: 8}}` (default: response)."""
    teachers: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """Further teachers: a folder or hub name -> its weight beside the first, which has weight 1. For objectives that
    compare predictions: `response`, `logit_mse`, `dkd` (default: none)."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Share of the teacher in the loss, against that of the labels (default 0.5; 1 where there are no labels)."""
    alpha_end: float | None = Field(default=None, ge=0, le=1)
    """Share of the teacher at the last step; `alpha` changes to it linearly (default: alpha is constant)."""
    cache: Annotated[TeacherCache | None, _switch(TeacherCache)] = None
    """Store the teacher's outputs on disk, in one pass before training, and read them in every epoch and in later
    runs with the same teacher and data; true for the default settings (default: the teacher runs in every step)."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_former(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            refuse_former(values, cls.model_fields)
        return values

    @property
    def objective_classes(self) -> dict[str, type[Objective]]:
        """Name -> class of each objective."""
        return {name: OBJECTIVES[name] for name in self.objective}

    @property
    def temperature(self) -> float:
        """The temperature at which the k largest logits of a cache keep their probabilities."""
        return next(iter(self._temperatures()), SoftenedConfig().temperature)

    def _temperatures(self) -> list[float]:
        return [one.temperature for one in self.objective.values() if isinstance(one, SoftenedConfig)]

    @model_validator(mode="after")
    def _check_alpha(self) -> Self:
        if self.alpha_end is not None and self.alpha is None:
            raise UsageError("alpha_end is the last value of alpha, and alpha has no first value: give alpha too")
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Self:
        for name, objective in self.objective_classes.items():
            if self.teachers and not objective.takes_several:
                several = ", ".join(other for other, made in OBJECTIVES.items() if made.takes_several)
                raise UsageError(
                    f"objective {name!r} follows the states of one teacher, which cannot be averaged over several: "
                    f"leave teachers out, or use {several}"
                )
        return self

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        if self.cache is None:
            return self
        for name, objective in self.objective_classes.items():
            if objective.uncached is not None:
                raise UsageError(
                    f"objective {name!r} reads {objective.uncached}, which are not cached: leave cache or it out"
                )
            if self.cache.top_k is not None and objective.needs_all_logits:
                raise UsageError(
                    f"cache: top_k keeps probabilities, not the logits that objective {name!r} compares: leave top_k "
                    "out, or use 'response'"
                )
        if self.cache.top_k is not None and len(set(self._temperatures())) > 1:
            raise UsageError(
                f"cache: top_k keeps the probabilities at one temperature, and the objectives have "
                f"{' and '.join(map(str, self._temperatures()))}: leave top_k out, or give them the same"
            )
        return self


class Distillation(TaughtTraining):
    """How a student learns from a teacher. The loss is (1 - alpha) * labels + alpha * sum of weighted objectives.

    >>> config = Distillation(objective={"response": {"temperature": 4}, "feature": 0.5}, cache=True)
    >>> config.objective["feature"].weight, config.cache.dtype
    (0.5, 'fp16')
    """

    verb: ClassVar[str] = "distill"

    no_teacher_baseline: bool = False
    """Also train the same student without the teacher, by the labels alone, and warn if it ends better than the
    distilled one on the validation data (default false; it takes the time of one more training)."""
    sequence_level: Annotated[SequenceLevel | None, _switch(SequenceLevel)] = None
    """Train on the teacher's outputs instead of the targets of the training data (encoder-decoders); true for greedy
    search (default: the targets of the data)."""
    augmentation: Augmentation | None = None
    """Further texts without labels that the student learns from: `{unlabeled: FILE}`, `{crops: 8}` or
    `{word_replacement: {model: FOLDER, copies: 20}}` (default: none)."""

    @model_validator(mode="after")
    def _check_one_teacher(self) -> Self:
        if self.sequence_level is not None and self.teachers:
            raise UsageError("sequence_level takes the outputs of one teacher: leave it out, or teachers")
        return self

    @model_validator(mode="after")
    def _check_augmentation(self) -> Self:
        if self.augmentation is None:
            return self
        labelled = [name for name, objective in self.objective_classes.items() if objective.needs_labels]
        if any(alpha not in (None, 1) for alpha in (self.alpha, self.alpha_end)) or labelled:
            raise UsageError(
                "augmentation adds texts whose labels are not known, so nothing can be learned from labels: leave "
                f"alpha out (the teacher alone), and objectives that need labels ({', '.join(labelled) or 'dkd'})"
            )
        return self
