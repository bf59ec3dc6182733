"""The settings of a distillation run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from effitrans.distillation.mapping import MAPPINGS
from effitrans.distillation.objectives import OBJECTIVES
from effitrans.errors import UsageError, unknown_name
from effitrans.training.config import Training

_OBJECTIVE_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"enum": sorted(OBJECTIVES)}},
        {"type": "object", "additionalProperties": {"type": "number"}},
    ]
}
"""The ways to write an objective; each is parsed into the mapping."""


class Distillation(Training):
    """How a student learns from a teacher. The loss is (1 - alpha) * labels + alpha * sum of weighted objectives."""

    objective: Annotated[dict[str, float], WithJsonSchema(_OBJECTIVE_SCHEMA)] = Field(default={"response": 1.0})
    """What is learned from the teacher: `response`, `feature`; several with a comma or as a list, weighted as a
    mapping `{response: 1, feature: 0.5}` (default: response)."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Share of the teacher in the loss, against that of the labels (default 0.5; 1 where there are no labels)."""
    temperature: float = Field(default=2.0, gt=0)
    """Both distributions of the response objective are softened by it (default 2). Regressions have none."""
    layer_mapping: Literal["uniform"] | dict[int, int] = "uniform"
    """Which hidden state of the teacher each of the student's follows: `uniform`, or pairs `{student: teacher}` where
    0 is the embeddings and i the output of the i-th layer (default uniform)."""

    @field_validator("objective", mode="before")
    @classmethod
    def _parse_objective(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if not isinstance(value, Mapping):
            if len(set(value)) != len(value):
                raise UsageError(f"objective names one twice: {', '.join(value)}")
            value = dict.fromkeys(value, 1.0)
        for name, weight in value.items():
            if name not in OBJECTIVES:
                raise unknown_name("objective", str(name), OBJECTIVES)
            if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise UsageError(f"weight of objective {name!r} must be a positive number, received {weight!r}")
        if not value:
            raise UsageError(f"name at least one objective: {', '.join(OBJECTIVES)}")
        return dict(value)

    @field_validator("layer_mapping", mode="before")
    @classmethod
    def _check_mapping(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in MAPPINGS:
            raise unknown_name("layer mapping", value, MAPPINGS)
        if isinstance(value, Mapping) and not value:
            raise UsageError("layer_mapping is empty: name at least one pair {student: teacher}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.layer_mapping != "uniform" and "feature" not in self.objective:
            raise UsageError(
                "layer_mapping is for objective 'feature', which is not asked for: add it, or leave it out"
            )
        return self
