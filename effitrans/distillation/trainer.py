"""The training step of distillation: the loss is made inside the student's forward pass.

A hook on the student turns its outputs into the loss. So everything that takes part in it, also the projections,
is used between the start and the end of one forward call, which is what data-parallel wrappers need to know which
gradients to wait for; and the student that the Trainer trains, saves and restores is the student itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from effitrans.distillation.objectives import Lesson, Objective
from effitrans.distillation.teacher import LABELS, Teacher
from effitrans.training.trainer import Trainer, accepted_inputs, count_items, predicts_next_token

CHILD = "distillation_objectives"
"""Name under which the objectives hang on the student while it learns, so that checkpoints hold what they learn."""


@dataclass
class Curriculum:
    """What the loss is made of, and the batch that is being looked at."""

    student: PreTrainedModel
    weights: Mapping[str, float]
    alpha: float
    inputs: Mapping[str, Tensor] | None = None
    teacher_outputs: Mapping[str, Any] | None = None

    @property
    def objectives(self) -> dict[str, Objective]:
        """The objectives by name, as they hang on the student."""
        return dict(getattr(self.student, CHILD).items())

    @property
    def needs(self) -> tuple[str, ...]:
        """Options of the forward passes that some objective needs."""
        return tuple(sorted({need for objective in self.objectives.values() for need in objective.needs}))

    def hook(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        """Forward hook of the student: its outputs become the loss while a batch is being learned from."""
        if self.inputs is None or self.teacher_outputs is None:
            return outputs
        lesson = make_lesson(self.student, outputs, self.teacher_outputs, self.inputs)
        terms = [self.weights[name] * objective(lesson) for name, objective in self.objectives.items()]
        loss = self.alpha * torch.stack(terms).sum()
        if self.alpha < 1 and count_items(self.inputs, lesson.shifted) > 0:
            loss = loss + (1 - self.alpha) * outputs["loss"]
        return ModelOutput(loss=loss)


def make_lesson(
    student: PreTrainedModel,
    outputs: Mapping[str, Any],
    teacher_outputs: Mapping[str, Any],
    inputs: Mapping[str, Tensor],
) -> Lesson:
    """What the objectives see of a batch."""
    config, logits = student.config, outputs.get("logits")
    problem_type = getattr(config, "problem_type", None)
    if logits is None or logits.dim() != 2:
        problem_type = None
    elif problem_type is None and config.num_labels == 1:
        problem_type = "regression"
    elif problem_type not in ("regression", "multi_label_classification"):
        problem_type = None
    return Lesson(outputs, teacher_outputs, inputs, predicts_next_token(student), problem_type)


class DistillationTrainer(Trainer):
    """Asks the teacher about every batch and lets the student learn from both.

    Args:
        teacher: where the teacher's outputs come from.
        curriculum: the loss.
        kwargs: of the training Trainer.
    """

    def __init__(self, *, teacher: Teacher, curriculum: Curriculum, **kwargs: Any) -> None:
        self.teacher, self.curriculum = teacher, curriculum
        super().__init__(**kwargs)

    def mean_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """In training, and where there are no labels, the distillation loss; else the loss of the labels."""
        has_labels = any(name in inputs for name in LABELS)
        if not model.training and has_labels:
            return super().mean_loss(model, inputs)
        student = self.curriculum.student
        with self.accelerator.autocast():
            self.curriculum.teacher_outputs = self.teacher(inputs)
        self.curriculum.inputs = inputs
        options = dict.fromkeys(self.curriculum.needs, True)
        try:
            outputs = model(**self._student_inputs(student, inputs), **options)
        finally:
            self.curriculum.inputs = self.curriculum.teacher_outputs = None
        return outputs["loss"], outputs

    def _student_inputs(self, student: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
        accepted = accepted_inputs(student, inputs)
        if self.curriculum.alpha < 1 or student.config.is_encoder_decoder:
            return accepted
        return {name: value for name, value in accepted.items() if name not in LABELS}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """Data without labels is evaluated by the distillation loss."""
        if any(name in inputs for name in LABELS):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)  # type: ignore[assignment]
        with torch.no_grad():
            loss, _ = self.mean_loss(model, inputs)
        return loss.detach().mean(), None, None
