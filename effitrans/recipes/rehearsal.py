"""What each verb can be known to refuse before anything runs: the step is done to a model without weights.

A rehearsal gives back the model that the step would leave, as far as that is known beforehand: which layers a search
removes is not, and what comes after it is then checked by its settings alone. Criteria that need data are stood in for
by magnitudes, which remove as many units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effitrans.attention import operator_config, swap_attention
from effitrans.distillation import Distillation, Linearization, make_student
from effitrans.distillation.choosing import parse_rule
from effitrans.distillation.conversion import require_peft
from effitrans.distillation.loop import reads_apart
from effitrans.distillation.student import check_compatible, is_copy
from effitrans.distillation.teachers import further_teachers
from effitrans.errors import UsageError
from effitrans.files import check_writable
from effitrans.pruning import L0Pruning, Pruning, Search, Sparsity, VocabularyPruning, prune
from effitrans.pruning.accepting import refuse_unprunable
from effitrans.pruning.search.sampling import require_optuna
from effitrans.quantization.quantize import check_quantizable
from effitrans.skeleton import duplicate
from effitrans.tasks import Task, load_task
from effitrans.tasks.loading import Loaded, skeleton_for_task
from effitrans.tasks.task import calibration_split
from effitrans.training import Training
from effitrans.training.arguments import check_environment
from effitrans.training.loop import check_trainable

if TYPE_CHECKING:
    from effitrans.recipes.steps import DistillStep, PruneStep, QuantizeStep, SwapStep


@dataclass
class Rehearsal:
    """What a step will find: the task, and models without weights; None where they cannot be known."""

    task: Task
    current: Loaded | None
    teacher: Loaded | None
    quantized: bool = False
    """Whether a current model that is not known is one of integers."""

    def refuse_quantized(self) -> None:
        """Refuse what only a floating-point model takes, where nothing else is known of the model."""
        if self.current is None and self.quantized:
            raise UsageError(
                "the model is quantized by then, and integer weights can be neither pruned nor trained: quantize last"
            )


Rehearse = Callable[[Any, Rehearsal], Loaded | None]


def rehearse_training(config: Training, on: Rehearsal) -> Loaded | None:
    on.refuse_quantized()
    _check_training(config, on, on.current)
    return on.current


def _check_training(config: Training, on: Rehearsal, trained: Loaded | None) -> None:
    check_environment(config)
    on.task.rows("train")
    if "validation" in on.task.splits:
        on.task.rows("validation")
    elif config.early_stopping is not None:
        raise UsageError(f"early_stopping needs a validation split, and task {on.task.name!r} has none: leave it out")
    if trained is not None:
        check_trainable(trained.model)


def rehearse_distillation(config: "DistillStep", on: Rehearsal) -> Loaded | None:
    teacher, student = on.teacher, on.current
    if isinstance(config.student, str) and is_copy(config.student):
        student = None
        if teacher is not None:
            student = Loaded(make_student(duplicate(teacher.model), config.student, inplace=True), teacher.processor)
    elif config.student is None:
        on.refuse_quantized()
    else:
        processor = None if teacher is None else teacher.processor
        student = skeleton_for_task(config.student, on.task, processor=processor)
    _check_training(config, on, student)
    _check_cache(config)
    others = {name: skeleton_for_task(name, on.task).model for name in config.teachers}
    if student is not None:
        further_teachers(student.model, config, others, student.processor)
        if teacher is not None:
            apart = reads_apart(config, student.processor, teacher.processor, on.task)
            check_compatible(student.model, teacher.model, student.processor, teacher.processor, own_inputs=apart)
    return student


def _check_cache(config: Distillation) -> None:
    if config.cache is not None:
        check_writable(
            config.cache.root, "the teacher's cache", "set EFFITRANS_CACHE or the cache's folder, or leave cache out"
        )


def rehearse_pruning(config: "PruneStep", on: Rehearsal) -> Loaded | None:
    on.refuse_quantized()
    if on.current is None:
        return None
    plain = config.model_dump(exclude={"recover", "learning_rate", "steps", "schedule"})
    model = prune(on.current.model, Pruning(**{**plain, "method": "magnitude"}), inplace=True)
    return Loaded(model, on.current.processor)


def rehearse_search(config: Search, on: Rehearsal) -> None:
    require_optuna(config.sampler)
    on.task.rows("validation" if config.min_quality is not None else calibration_split(on.task.splits))
    _refuse_unprunable(on)


def rehearse_gates(config: L0Pruning, on: Rehearsal) -> None:
    on.task.rows("train")
    _refuse_unprunable(on)


def rehearse_sparsity(config: Sparsity, on: Rehearsal) -> Loaded | None:
    _refuse_unprunable(on)
    return on.current


def rehearse_vocabulary(config: VocabularyPruning, on: Rehearsal) -> Loaded | None:
    if config.corpus is not None:
        load_task(config.corpus).rows("train")
    _refuse_unprunable(on)
    return on.current


def _refuse_unprunable(on: Rehearsal) -> None:
    on.refuse_quantized()
    if on.current is not None:
        refuse_unprunable(on.current.model)


def rehearse_quantization(config: "QuantizeStep", on: Rehearsal) -> Loaded | None:
    if on.current is None:
        on.refuse_quantized()
        on.quantized = True
    else:
        check_quantizable(on.current.model, config.options)
        on.current.model.is_quantized = True  # type: ignore[assignment]
    return on.current


def rehearse_swap(config: "SwapStep", on: Rehearsal) -> Loaded | None:
    if on.current is None:
        return None
    model = swap_attention(on.current.model, config.options, layers=config.layers, inplace=True)  # type: ignore[arg-type]
    return Loaded(model, on.current.processor)


def rehearse_linearization(config: Linearization, on: Rehearsal) -> Loaded | None:
    on.refuse_quantized()
    _check_training(config, on, on.current)
    if config.lora_rank is not None:
        require_peft()
    if on.current is None:
        return None
    operator = operator_config(config.attention, config.options)
    # A rule chooses among the layers that the operator can have: some will do.
    layers = None if parse_rule(config.layers) is not None else config.layers
    return Loaded(swap_attention(on.current.model, operator, layers=layers, inplace=True), on.current.processor)
