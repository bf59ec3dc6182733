"""What a recipe step may be: one verb, the config that its fields parse into, and the call that runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from effitrans.config import Config
from effitrans.distillation import Distillation, Linearization, distill, linearize, make_student
from effitrans.distillation.former import refuse_former
from effitrans.distillation.student import is_copy
from effitrans.errors import unknown_name
from effitrans.layers import Layers
from effitrans.pruning import (
    L0Pruning,
    Pruning,
    Search,
    Sparsity,
    VocabularyPruning,
    prune,
    prune_units,
    pruned_vocabulary,
)
from effitrans.pruning.search.search import search
from effitrans.quantization import SCHEMES, Scheme, quantize
from effitrans.recipes.rehearsal import (
    Rehearse,
    rehearse_distillation,
    rehearse_gates,
    rehearse_linearization,
    rehearse_pruning,
    rehearse_quantization,
    rehearse_search,
    rehearse_sparsity,
    rehearse_swap,
    rehearse_training,
    rehearse_vocabulary,
)
from effitrans.tasks import Task
from effitrans.tasks.loading import Loaded, load_for_task
from effitrans.training import Training, train


@dataclass
class Context:
    """What a step works on.

    `current` is the model so far, `teacher` the baseline that students learn from, loaded when it is first asked for.
    `work` is a folder for training checkpoints, from which the step continues with `resume`.
    """

    task: Task
    current: Loaded
    load_teacher: Callable[[], Loaded]
    seed: int
    work: Path
    resume: bool = False

    @cached_property
    def teacher(self) -> Loaded:
        return self.load_teacher()


class DistillStep(Distillation):
    """Distillation, and where the student comes from."""

    student: str | dict[str, Any] | None = None
    """`layers=N` (a copy of the teacher with N evenly chosen layers; `layers=0-2,5`: with these), narrower with
    `hidden=N`, `heads=N` and `ffn=N` (a comma between), `base`, a folder or a hub name.
    Default: the model as the previous steps left it, so that the step is a recovery."""


class PruneStep(Pruning):
    """Pruning, and what the model recovers by between its steps."""

    recover: float = Field(default=0.0, ge=0)
    """Epochs of distillation from the baseline after every step but the last; the recipe recovers the result itself,
    by a `distill` step (default 0)."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of that distillation (default 5e-5)."""

    def idle(self) -> dict[str, str]:
        return {**super().idle(), **({} if self.recover else {"learning_rate": "without recover"})}

    @model_validator(mode="after")
    def _recovers_between_steps(self) -> Self:
        if self.recover and self.steps == 1:
            raise ValueError("recover trains between steps: set steps to more than 1, or add a distill step")
        return self


class QuantizeStep(Config):
    """A quantization scheme; its own fields follow the scheme's config."""

    scheme: str = "int8-dynamic"
    """Name of the scheme."""
    options: Scheme
    """The scheme's config."""


class SwapStep(Config):
    """An attention operator; its own fields follow the operator's config."""

    attention: str
    """Name of the operator."""
    layers: Layers | None = None
    """Self-attention layers to swap: numbers such as `0-3,5`, a list, or module paths. Default: all."""
    options: Config
    """The operator's config."""


def _nested(step: type[Config], key: str, what: str, registry: Callable[[], Mapping[str, type[Config]]]) -> Any:
    """A parser for steps whose remaining fields belong to the config that `key` names in a registry."""

    def parse(values: Mapping[str, Any], where: str) -> Config:
        own = {name: value for name, value in values.items() if name in step.model_fields and name != "options"}
        rest = {name: value for name, value in values.items() if name not in own}
        known = registry()
        default = step.model_fields[key].default
        name = own.setdefault(key, default if isinstance(default, str) else None)
        if not isinstance(name, str) or name not in known:
            raise unknown_name(what, str(name), known)
        return step.parse({**own, "options": known[name].parse(rest, where)}, where)

    return parse


def _operators() -> Mapping[str, type[Config]]:
    from effitrans.attention import OPERATORS

    return OPERATORS


def _train(config: Training, context: Context) -> Loaded:
    result = train(
        context.current.model,
        context.task,
        config,
        processor=context.current.processor,
        output_dir=context.work,
        resume=context.resume,
    )
    return Loaded(result.model, context.current.processor)


def _distill(config: DistillStep, context: Context) -> Loaded:
    student = resolve_student(config.student, context)
    result = distill(
        student.model,
        context.teacher.model,
        context.task,
        Distillation(**config.model_dump(exclude={"student"})),
        processor=student.processor,
        teacher_processor=context.teacher.processor,
        output_dir=context.work,
        resume=context.resume,
    )
    return Loaded(result.model, student.processor)


def resolve_student(spec: str | dict[str, Any] | None, context: Context) -> Loaded:
    """The student that a spec names: the current model, a smaller copy of the teacher, or another model."""
    if spec is None:
        return context.current
    if isinstance(spec, str) and is_copy(spec):
        return Loaded(make_student(context.teacher.model, spec), context.teacher.processor)
    return load_for_task(spec, context.task, seed=context.seed, processor=context.teacher.processor, new_head=True)


def _prune(config: PruneStep, context: Context) -> Loaded:
    current = context.current

    def recover(model: PreTrainedModel) -> None:
        settings = Distillation(epochs=config.recover, learning_rate=config.learning_rate, seed=config.seed)
        distill(model, context.teacher.model, context.task, settings, processor=current.processor)

    model = prune_units(
        current.model,
        Pruning(**config.model_dump(exclude={"recover", "learning_rate"})),
        context.task,
        processor=current.processor,
        recover=recover if config.recover else None,
        inplace=True,
    )
    return Loaded(model, current.processor)


def _search(config: Search, context: Context) -> Loaded:
    current = context.current
    storage = context.work / "search.json"
    model = search(current.model, config, context.task, processor=current.processor, storage=storage)
    return Loaded(model, current.processor)


def _learn_gates(config: L0Pruning, context: Context) -> Loaded:
    current = context.current
    return Loaded(prune(current.model, config, context.task, processor=current.processor), current.processor)


def _sparsify(config: Sparsity, context: Context) -> Loaded:
    current = context.current
    model = prune(current.model, config, context.task, processor=current.processor, inplace=True)
    return Loaded(model, current.processor)


def _prune_vocabulary(config: VocabularyPruning, context: Context) -> Loaded:
    current = context.current
    corpus = context.task if config.corpus is None else config.corpus
    pruned = pruned_vocabulary(current.model, current.processor, corpus, config, inplace=True)
    return Loaded(pruned.model, pruned.tokenizer)


def _quantize(config: QuantizeStep, context: Context) -> Loaded:
    current = context.current
    model = quantize(current.model, config.options, context.task, processor=current.processor, inplace=True)
    return Loaded(model, current.processor)


def _swap(config: SwapStep, context: Context) -> Loaded:
    from effitrans.attention import swap_attention

    model = swap_attention(context.current.model, config.options, layers=config.layers, inplace=True)  # type: ignore[arg-type]
    return Loaded(model, context.current.processor)


def _linearize(config: Linearization, context: Context) -> Loaded:
    current = context.current
    result = linearize(
        current.model,
        context.task,
        config,
        processor=current.processor,
        output_dir=context.work,
        resume=context.resume,
    )
    return Loaded(result.model, current.processor)


def _parse_linearization(values: Mapping[str, Any], where: str) -> Config:
    """The settings of the operator may stand beside those of the conversion, as in a swap step."""
    refuse_former(values, Linearization.model_fields)
    own = {name: value for name, value in values.items() if name in Linearization.model_fields}
    options = {name: value for name, value in values.items() if name not in own}
    return Linearization.parse({**own, "options": {**own.get("options", {}), **options}}, where)


def _linearization_schema() -> dict[str, Any]:
    schema, operators = Linearization.model_json_schema(), _nested_schema("attention", _operators())
    return {**schema, "properties": {**operators["properties"], **schema["properties"]}}


@dataclass(frozen=True)
class Verb:
    """How one kind of step is parsed, described and run."""

    parse: Callable[[Mapping[str, Any], str], Config]
    schema: Callable[[], dict[str, Any]]
    run: Callable[[Any, Context], Loaded]
    rehearse: Rehearse
    """What can be refused before anything runs."""


def _plain(config: type[Config], run: Callable[[Any, Context], Loaded], rehearse: Rehearse) -> Verb:
    return Verb(config.parse, config.model_json_schema, run, rehearse)


def seed_of(config: Config) -> int | None:
    """The seed of a step's config or of the options it holds; None where nothing is drawn."""
    holders = [config, getattr(config, "options", None)]
    return next((holder.seed for holder in holders if "seed" in getattr(holder, "model_fields_set", ())), None)  # type: ignore[union-attr]


_SWAP_LAYERS = {"layers": SwapStep.model_json_schema()["properties"]["layers"]}

VERBS: dict[str, Verb] = {
    "train": _plain(Training, _train, rehearse_training),
    "distill": _plain(DistillStep, _distill, rehearse_distillation),
    "prune": _plain(PruneStep, _prune, rehearse_pruning),
    "search": _plain(Search, _search, rehearse_search),
    "learn_gates": _plain(L0Pruning, _learn_gates, rehearse_gates),
    "sparsify": _plain(Sparsity, _sparsify, rehearse_sparsity),
    "prune_vocabulary": _plain(VocabularyPruning, _prune_vocabulary, rehearse_vocabulary),
    "quantize": Verb(
        _nested(QuantizeStep, "scheme", "quantization scheme", lambda: SCHEMES),
        lambda: _nested_schema("scheme", SCHEMES),
        _quantize,
        rehearse_quantization,
    ),
    "swap": Verb(
        _nested(SwapStep, "attention", "attention operator", _operators),
        lambda: _nested_schema(
            "attention", _operators(), {"layers": SwapStep.model_json_schema()["properties"]["layers"]}
        ),
        _swap,
        rehearse_swap,
    ),
    "linearize": Verb(_parse_linearization, _linearization_schema, _linearize, rehearse_linearization),
}
"""Verb -> step. A new verb is one line here."""


def _nested_schema(
    key: str, registry: Mapping[str, type[Config]], extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    properties: dict[str, Any] = {key: {"enum": sorted(registry)}, **(extra or {})}
    for config in registry.values():
        properties.update(config.model_json_schema().get("properties", {}))
    return {"type": "object", "properties": properties, "additionalProperties": False}
