"""The settings of a distillation run."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from effitrans.config import Count, Width
from effitrans.distillation.mapping import DYNAMIC, MAPPINGS
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


_BELONGS = {
    "relation_heads": ("relation",),
    "relation_layer": ("relation",),
    "relations": ("relation",),
    "dkd_weight": ("dkd",),
    "temperature": ("response", "dkd"),
}
"""Setting -> the objectives that read it."""


class Distillation(Training):
    """How a student learns from a teacher. The loss is (1 - alpha) * labels + alpha * sum of weighted objectives."""

    verb: ClassVar[str] = "distill"

    objective: Annotated[dict[str, float], WithJsonSchema(_OBJECTIVE_SCHEMA)] = Field(default={"response": 1.0})
    """What is learned from the teacher. Predictions: `response`, `logit_mse`, `dkd`, `embedding`; states of layers:
    `feature`, `cosine`, `pkd`, `embeddings`, `feed_forward`; relations: `attention`, `relation`, `rkd`. Several with
    a comma or as a list, weighted as a mapping `{response: 1, feature: 0.5}` (default: response)."""
    teachers: dict[str, float] = Field(default={})
    """Further teachers: a folder or hub name -> its weight beside the first, which has weight 1. For objectives that
    compare predictions: `response`, `logit_mse`, `dkd` (default: none)."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Share of the teacher in the loss, against that of the labels (default 0.5; 1 where there are no labels)."""
    alpha_end: float | None = Field(default=None, ge=0, le=1)
    """Share of the teacher at the last step, which `alpha` goes to in equal steps (default: alpha stays)."""
    temperature: float = Field(default=2.0, gt=0)
    """Both distributions of `response` and `dkd` are softened by it (default 2). Regressions have none."""
    dkd_weight: float = Field(default=8.0, ge=0)
    """Weight of the divergence among the classes other than the label in `dkd` (default 8, that of the paper)."""
    layer_mapping: Literal["uniform", "last", "skip", "dynamic"] | dict[int, int] = "uniform"
    """Which hidden state of the teacher each of the student's follows: `uniform` (evenly spread); `last` (the
    teacher's last layers); `skip` (each layer its original, in a student `layers=N` or pruned from the teacher);
    `dynamic` (the nearest in each batch, in order); or pairs `{student: teacher}` where 0 is the embeddings and i the
    output of the i-th layer (default uniform)."""
    relations: tuple[Literal["query", "key", "value"], ...] = Field(default=("query", "key", "value"), min_length=1)
    """What `relation` compares (default all three: MiniLMv2; `value` with objective `attention`: MiniLM)."""
    relation_heads: Width | None = None
    """Heads that `relation` cuts the joined heads into; it must divide the widths of both models (default: as many
    of the teacher's heads as do)."""
    relation_layer: Width | None = None
    """Layer of the teacher, counted from 1, that the student's last one follows in `relation` (default the last;
    for teachers of 24 layers the paper takes one of the upper middle)."""

    control: bool = False
    """Train the same student without the teacher too, by the labels alone, and say so where it ends better than the
    taught one on the validation data (default false; it takes the time of a training more)."""
    sequence_level: bool = False
    """Train on what the teacher writes in place of the targets of the training data (encoder-decoders; default
    false)."""
    sequence_beams: Count = 1
    """Beams with which the teacher looks for its answers (default 1: greedily; the paper takes 5)."""
    unlabeled: str | None = None
    """A file of further texts (csv, json, jsonl, parquet, txt) with the task's input columns, which the student learns
    from besides; for tasks with one answer for a text. There are no labels for them, so the loss is the teacher's
    alone."""
    crops: int = Field(default=0, ge=0, le=1000)
    """Random parts of each training text, runs of words that stand together, that the student learns from besides
    (default 0); for tasks with one answer for a text. Their labels are not known, so the loss is the teacher's
    alone."""
    augment: int = Field(default=0, ge=0, le=1000)
    """Changed copies of each training example that the student learns from besides (default 0; TinyBERT takes 20).
    Their labels no longer hold, so the loss is the teacher's alone."""
    augment_model: str | None = None
    """The masked language model, a folder or hub name, that says what may stand in the place of a word."""
    augment_share: float = Field(default=0.15, gt=0, le=1)
    """Probability with which a word is replaced (default 0.15; TinyBERT takes 0.4)."""
    augment_candidates: Count = 15
    """Most likely tokens among which the replacement is drawn (default 15, as in the paper)."""
    cache: bool = False
    """Store the teacher's outputs on disk, in one pass before training, and read them in every epoch and in later
    runs with the same teacher and data (default false: the teacher runs in every step)."""
    cache_dtype: Literal["fp32", "bf16", "fp16"] = "fp16"
    """Precision of what is stored (default fp16); fp32 gives what the teacher gives."""
    cache_top_k: Count | None = None
    """Store only so many of the largest logits of each prediction, which keep their probabilities at `temperature`;
    the others share what is left evenly (default: all)."""
    cache_hidden_states: bool = False
    """Store what objectives compare within layers too. Hidden states: width x (layers + 1) numbers a token;
    `relation`: those of the queries, keys and values of one layer."""
    cache_folder: str | None = None
    """Where caches are kept (default: `teachers` in `$EFFITRANS_CACHE`, else in `~/.cache/effitrans`)."""

    @field_validator("objective", mode="before")
    @classmethod
    def _parse_objective(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [name.strip() for name in value.split(",") if name.strip()]
        if isinstance(value, list | tuple):
            names = [str(name) for name in value]
            if len(set(names)) != len(names):
                raise UsageError(f"objective names one twice: {', '.join(names)}")
            value = dict.fromkeys(names, 1.0)
        if not isinstance(value, Mapping):
            raise UsageError(f"objective is a name, a list of names or {{name: weight}}, received {value!r}")
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
        if isinstance(value, str) and value not in (names := (*MAPPINGS, DYNAMIC)):
            raise unknown_name("layer mapping", value, names)
        if isinstance(value, Mapping) and not value:
            raise UsageError("layer_mapping is empty: name at least one pair {student: teacher}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        following = [name for name, objective in OBJECTIVES.items() if objective.follows_layers]
        if self.layer_mapping != "uniform" and not set(following) & set(self.objective):
            raise UsageError(
                f"layer_mapping is for objective 'feature' and others that compare layers: {', '.join(following[1:])}. "
                "None is asked for: add one, or leave it out"
            )
        for setting, readers in _BELONGS.items():
            is_set = getattr(self, setting) != type(self).model_fields[setting].default
            if is_set and not set(readers) & set(self.objective):
                raise UsageError(
                    f"{setting} is for objective {' or '.join(map(repr, readers))}, which is not asked for: add it, or "
                    "leave it out"
                )
        if self.sequence_beams > 1 and not self.sequence_level:
            raise UsageError("sequence_beams is for sequence_level, which is not asked for: set it, or leave it out")
        if self.alpha_end is not None and self.alpha is None:
            raise UsageError("alpha_end is what alpha goes to: give alpha, the share of the teacher at the first step")
        return self

    @model_validator(mode="after")
    def _check_teachers(self) -> Self:
        for name, weight in self.teachers.items():
            if not 0 < weight < float("inf"):
                raise UsageError(f"weight of teacher {name!r} must be a positive number, received {weight!r}")
        if not self.teachers:
            return self
        for name in self.objective:
            if not OBJECTIVES[name].takes_several:
                several = ", ".join(other for other, objective in OBJECTIVES.items() if objective.takes_several)
                raise UsageError(
                    f"objective {name!r} follows the states of one teacher, which cannot be averaged over several: "
                    f"leave teachers out, or use {several}"
                )
        if self.sequence_level:
            raise UsageError("sequence_level takes the answers of one teacher: leave it out, or teachers")
        return self

    @model_validator(mode="after")
    def _check_augmentation(self) -> Self:
        if not self.augment:
            for name in ("augment_model", "augment_share", "augment_candidates"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise UsageError(f"{name} is for augment, which is not asked for: set it, or leave {name} out")
        elif self.augment_model is None:
            raise UsageError("augment needs a masked language model: set augment_model to a folder or hub name")
        uses_labels = any(alpha not in (None, 1) for alpha in (self.alpha, self.alpha_end)) or "dkd" in self.objective
        if uses_labels and self.adds_texts:
            raise UsageError(
                f"{self.adds_texts} adds texts whose labels are not known, so nothing can be learned from labels: "
                "leave alpha out (the teacher alone), and objective 'dkd'"
            )
        return self

    @property
    def adds_texts(self) -> str | None:
        """The setting that adds texts without labels; None if none does."""
        return next((name for name in ("unlabeled", "crops", "augment") if getattr(self, name)), None)

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        given = sorted(name for name in self.model_fields_set if name.startswith("cache_"))
        if not self.cache:
            if unused := [name for name in given if getattr(self, name) != type(self).model_fields[name].default]:
                raise UsageError(f"{unused[0]} is for cache=true, which is not set: set it, or leave {unused[0]} out")
            return self
        if self.cache_top_k is not None and "logit_mse" in self.objective:
            raise UsageError(
                "cache_top_k keeps probabilities, not the logits that objective 'logit_mse' compares: leave it out, or "
                "use 'response'"
            )
        for name in self.objective:
            if OBJECTIVES[name].uncached is not None:
                raise UsageError(
                    f"objective {name!r} reads {OBJECTIVES[name].uncached}, which are not cached: leave cache or it out"
                )
            if OBJECTIVES[name].reads_states and not self.cache_hidden_states:
                raise UsageError(
                    f"objective {name!r} reads hidden states or queries and keys, which take much space: set "
                    "cache_hidden_states to cache them too, or leave cache out"
                )
        return self
