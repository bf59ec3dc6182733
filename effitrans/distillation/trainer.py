"""The training step of distillation: the loss is computed inside the student's forward pass.

A hook on the student turns its outputs into the loss. So everything that takes part in it, also the projections,
is used between the start and the end of one forward call, which is what data-parallel wrappers need to know which
gradients to wait for; and the student that the Trainer trains, saves and restores is the student itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from effitrans.distillation.objectives.base import UNITS, DistillationBatch, Objective
from effitrans.distillation.objectives.response import count_predictions
from effitrans.distillation.recording import Recorder
from effitrans.distillation.student import problem_type
from effitrans.distillation.teacher import LABELS, Teacher, refuse_overflow, teacher_batch
from effitrans.training.data import LossFunction
from effitrans.training.trainer import Trainer, accepted_inputs, count_examples, count_items, predicts_next_token

CHILD = "distillation_objectives"
"""Name of the student's submodule that holds the objectives during training, so that checkpoints hold them too."""


@dataclass
class DistillationLoss:
    """The loss of distillation: its parts and weights, and the current batch.

    Args:
        student: the student.
        weights: objective -> its weight.
        alpha: share of the teacher at the first step.
        alpha_end: share of the teacher at the last step; None: `alpha`.
        task_loss: the loss of the labels, for tasks whose loss no forward pass computes.
        shares: weight of each teacher; their sum is 1.
        recorder: keeps what the objectives read of the inside of the student's layers.
        pooling, kept: of the batches.
    """

    student: PreTrainedModel
    recorder: Recorder
    weights: Mapping[str, float]
    alpha: float
    alpha_end: float | None = None
    task_loss: LossFunction | None = None
    shares: Sequence[float] = (1.0,)
    pooling: str | Sequence[str] = "mean"
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    progress: float = 0.0
    inputs: Mapping[str, Tensor] | None = None
    teacher_outputs: Sequence[Mapping[str, Any]] | None = None

    @property
    def objectives(self) -> dict[str, Objective]:
        """The objectives by name, submodules of the student during training."""
        return dict(getattr(self.student, CHILD).items())

    @property
    def needs(self) -> tuple[str, ...]:
        """Options of the forward passes that some objective needs."""
        return tuple(sorted({need for objective in self.objectives.values() for need in objective.needs}))

    @property
    def share(self) -> float:
        """The share of the teacher in the loss at the current step."""
        end = self.alpha if self.alpha_end is None else self.alpha_end
        return self.alpha + (end - self.alpha) * self.progress

    @property
    def uses_labels(self) -> bool:
        """Whether the labels have a part in the loss at some step."""
        return self.alpha < 1 or (self.alpha_end is not None and self.alpha_end < 1)

    def hook(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        """Forward hook of the student: its outputs become the loss, by `UNITS`, during a training step."""
        if self.inputs is None or self.teacher_outputs is None:
            return outputs
        batches = [self.batch(outputs, theirs, self.inputs) for theirs in self.teacher_outputs]
        terms: dict[str, list[Tensor]] = {unit: [] for unit in UNITS}
        for share, batch in zip(self.shares, batches, strict=True):
            for name, objective in self.objectives.items():
                terms[objective.unit].append(self.share * share * self.weights[name] * objective(batch))
        if self.share < 1 and count_items(self.inputs, batches[0].shifted) > 0:
            hard = self.hard_loss(outputs, self.inputs)
            assert hard is not None  # the first batch was tried before training
            terms["labels"].append((1 - self.share) * hard)
        parts = {unit: torch.stack(found).sum() for unit, found in terms.items() if found}
        nothing = torch.zeros_like(next(iter(parts.values())))
        return ModelOutput(loss=torch.stack([parts.get(unit, nothing) for unit in UNITS]))

    def hard_loss(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The loss of the labels, which the student's forward pass has computed or its task does; None: neither."""
        if outputs.get("loss") is None and self.task_loss is not None and "labels" in inputs:
            return self.task_loss(lambda **_: outputs, dict(inputs))[0]  # type: ignore[arg-type]
        return outputs.get("loss")

    def batch(
        self, outputs: Any, teacher_outputs: Mapping[str, Any], inputs: Mapping[str, Tensor]
    ) -> DistillationBatch:
        """What the objectives see of a batch."""
        theirs = teacher_batch(inputs)
        return DistillationBatch(
            {**outputs, **self.recorder.take()},
            teacher_outputs,
            inputs,
            predicts_next_token(self.student),
            problem_type(self.student),
            self.pooling,
            self.kept,
            None if theirs is inputs else theirs,
        )


class DistillationTrainer(Trainer):
    """Runs the teachers on every batch and trains the student on their outputs and on the labels.

    Args:
        teachers: where the outputs of each teacher come from, in the order of the loss's shares.
        distillation_loss: what the student is trained by.
        kwargs: of the training Trainer.
    """

    def __init__(self, *, teachers: Sequence[Teacher], distillation_loss: DistillationLoss, **kwargs: Any) -> None:
        self.teachers, self.distillation_loss = teachers, distillation_loss
        super().__init__(**kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        for teacher in self.teachers:
            teacher.prepare(self.accelerator)
        return super().train(*args, **kwargs)

    def counts(self, inputs: dict[str, Any]) -> list[int]:
        """The number of each of `UNITS`."""
        labels, predictions = count_items(inputs, self.shifted), count_predictions(inputs, self.shifted)
        return [labels, predictions, count_examples(inputs)]

    def mean_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """In training, and where there are no labels, the distillation loss; else the loss of the labels."""
        has_labels = any(name in inputs for name in LABELS)
        if not model.training and has_labels:
            return super().mean_loss(model, inputs)
        loss = self.distillation_loss
        with self.accelerator.autocast():
            loss.teacher_outputs = [teacher(inputs) for teacher in self.teachers]
        loss.inputs = inputs
        loss.progress = min(self.state.global_step / max(self.state.max_steps - 1, 1), 1.0)
        options = dict.fromkeys(loss.needs, True)
        try:
            with loss.recorder.running():
                outputs = model(**self._student_inputs(loss.student, inputs), **options)
            if not outputs["loss"].isfinite().all():
                for teacher, theirs in zip(self.teachers, loss.teacher_outputs, strict=True):
                    refuse_overflow(theirs, teacher.model)
        finally:
            loss.inputs = loss.teacher_outputs = None
        return outputs["loss"], outputs

    def _student_inputs(self, student: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
        accepted = accepted_inputs(student, inputs)
        if self.distillation_loss.uses_labels or student.config.is_encoder_decoder:
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
        return loss.detach().sum(), None, None
