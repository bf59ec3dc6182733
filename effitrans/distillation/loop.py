"""`distill`: teach a smaller model what a larger one knows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.distillation.config import Distillation
from effitrans.distillation.data import resolve_for_both
from effitrans.distillation.objectives import OBJECTIVES, Lesson
from effitrans.distillation.student import check_compatible
from effitrans.distillation.teacher import LABELS, LiveTeacher, in_evaluation
from effitrans.distillation.trainer import CHILD, Curriculum, DistillationTrainer, make_lesson
from effitrans.errors import UsageError
from effitrans.training.arguments import check_environment
from effitrans.training.data import Data
from effitrans.training.loop import TrainResult, check_trainable, fit, summary
from effitrans.training.trainer import accepted_inputs


def distill(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: Any,
    config: Distillation | None = None,
    *,
    processor: Any = None,
    teacher_processor: Any = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a student in place under a teacher.

    Args:
        student: a transformers model, pruned or not, but with no integer weights.
        teacher: a model with the same inputs and outputs, of any family, depth, width and precision. It runs in
            evaluation mode and is neither changed nor saved.
        data: as in `effitrans.train`; rows of a `datasets.Dataset` and batches of a `DataLoader` may lack labels.
        config: settings; default `Distillation()`.
        processor: the tokenizer (or image processor) that encodes the task for both models.
        teacher_processor: the teacher's own, to check that it is the same; None compares vocabulary sizes.
        output_dir: as in `effitrans.train`.
        resume: as in `effitrans.train`.

    Returns:
        The student, which is the one passed in, in its best state, and the history.

    Raises:
        UsageError: as `effitrans.train`; another vocabulary or other labels than the teacher's; an objective that
            this pair of models does not allow; alpha below 1 and no labels.
        TrainingDiverged, KeyboardInterrupt: as `effitrans.train`.

    >>> import datasets
    >>> from effitrans.distillation import make_student
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> teacher = BertForSequenceClassification(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2,
    ...     num_attention_heads=2, intermediate_size=8))
    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]})
    >>> distill(make_student(teacher, "layers=1"), teacher, rows, Distillation(max_steps=2, batch_size=2)).steps
    2
    """
    config = config if config is not None else Distillation()
    check_trainable(student)
    check_environment(config)
    check_compatible(student, teacher, processor, teacher_processor)
    found = resolve_for_both(data, student, teacher, processor, config)
    with in_evaluation(teacher):
        example = _first_batch(found)
        needs = tuple(sorted({need for name in config.objective for need in OBJECTIVES[name].needs}))
        alpha = _alpha(config, example)
        lesson = _try(student, teacher, example, needs, alpha)
        curriculum = Curriculum(student, config.objective, alpha)
        with _objectives(student, curriculum, config, lesson):
            result = fit(
                student,
                found,
                config,
                output_dir=output_dir,
                resume=resume,
                description="distill",
                trainer_class=DistillationTrainer,
                teacher=LiveTeacher(teacher, needs),
                curriculum=curriculum,
            )
    checkpoint.record(student, "distill", config, **summary(result), teacher_parameters=teacher.num_parameters())
    return result


def _first_batch(data: Data) -> dict[str, Tensor]:
    if isinstance(data.train, DataLoader):
        with torch.random.fork_rng(devices=[]):
            return next(iter(data.train))
    return data.collate([data.train[i] for i in range(min(2, len(data.train)))])


def _alpha(config: Distillation, example: Mapping[str, Tensor]) -> float:
    has_labels = any(name in example for name in LABELS)
    if config.alpha is None:
        return 0.5 if has_labels else 1.0
    if config.alpha < 1 and not has_labels:
        raise UsageError(
            f"alpha {config.alpha} leaves a part of the loss to labels, and the data has none: "
            "leave alpha out (the teacher alone), or pass data with labels"
        )
    return config.alpha


@torch.no_grad()
def _try(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    example: dict[str, Tensor],
    needs: tuple[str, ...],
    alpha: float,
) -> Lesson:
    """Both models' outputs for one batch, from whose shapes the objectives are built."""
    inputs = {name: tensor.to(student.device) for name, tensor in example.items()}
    was_training = student.training
    student.eval()
    outputs = student(**accepted_inputs(student, inputs), **dict.fromkeys(needs, True), return_dict=True)
    student.train(was_training)
    if alpha < 1 and outputs.get("loss") is None:
        raise UsageError(
            f"{type(student).__name__} gave no loss for a batch with {', '.join(inputs)}: use a model with a head for "
            "the task, or alpha=1 (the teacher alone)"
        )
    return make_lesson(student, outputs, LiveTeacher(teacher, needs)(inputs), inputs)


@contextmanager
def _objectives(
    student: PreTrainedModel, curriculum: Curriculum, config: Distillation, example: Lesson
) -> Iterator[None]:
    """Hang the objectives on the student, with the hook that makes the loss; take them off at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        built = nn.ModuleDict({name: OBJECTIVES[name](config, example) for name in config.objective})
    student.add_module(CHILD, built)
    handle = student.register_forward_hook(curriculum.hook)
    try:
        yield
    finally:
        handle.remove()
        delattr(student, CHILD)
