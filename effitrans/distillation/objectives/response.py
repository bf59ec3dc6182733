"""Response: the student's predictions follow the teacher's.

Classes, tokens and answer positions: T^2 * KL(softmax(t / T) || softmax(s / T)) with temperature T, the sum over
classes and the mean over examples or predicted tokens (Hinton, Vinyals and Dean 2015, section 2; the factor keeps the
size of the gradient independent of T). Independent labels (multi-label classification) are taken as pairs of classes.
Regression: mean squared error between the outputs. Models that give vectors (embedding tasks): the
`sentence_embedding` objective. Language models are compared where there is a label to predict; without labels, wherever
there is a token.
Time and memory: two softmaxes over the classes.

Shapes: B batch, L length, C classes or vocabulary, N predictions.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from effitrans.distillation.objectives.base import DistillationBatch, Objective, ObjectiveConfig, attended
from effitrans.distillation.objectives.sentence_embedding import SentenceEmbedding
from effitrans.errors import UsageError
from effitrans.tasks.padding import MAIN_INPUTS

QA_LOGITS = ("start_logits", "end_logits")


class SoftenedConfig(ObjectiveConfig):
    """Settings of objective `response`, and of those that soften both distributions as it does."""

    temperature: float = Field(default=2.0, gt=0)
    """Logits of both models are divided by it (default 2). Regressions and embeddings have none."""


class Response(Objective):
    """See the module's text."""

    config_class: ClassVar[type[ObjectiveConfig]] = SoftenedConfig
    compares_sentences: ClassVar[bool] = True
    takes_several: bool = True

    def __init__(self, config: SoftenedConfig, example: DistillationBatch) -> None:
        super().__init__(config, example)
        self.temperature = config.temperature
        self.embedding: SentenceEmbedding | None = None
        if all("logits" not in side and "last_hidden_state" in side for side in (example.student, example.teacher)):
            self.embedding = SentenceEmbedding(ObjectiveConfig(), example)
            self.takes_several = False
        else:
            check_shapes(example, "response")
            self.unit = unit_of(example)

    def forward(self, batch: DistillationBatch) -> Tensor:
        if self.embedding is not None:
            return self.embedding(batch)
        if batch.problem_type == "regression":
            student, teacher = batch.student["logits"].float(), batch.teacher["logits"].float()
            return torch.nn.functional.mse_loss(student, teacher)
        losses = [self._divergence(batch, name) for name in logits_of(batch)]
        return torch.stack(losses).mean()

    def _divergence(self, batch: DistillationBatch, name: str) -> Tensor:
        student, teacher = (select(batch, outputs[name]) for outputs in (batch.student, batch.teacher))
        if batch.problem_type == "multi_label_classification":
            student, teacher = (torch.stack([x, torch.zeros_like(x)], -1).flatten(0, 1) for x in (student, teacher))
        return soft_divergence(student, teacher, self.temperature)


def check_shapes(example: DistillationBatch, objective: str) -> None:
    """Refuse models whose logits cannot be compared.

    Raises:
        UsageError: no logits, or logits of another shape.
    """
    for name in logits_of(example):
        student, teacher = example.student[name].shape, example.teacher[name].shape
        if student != teacher:
            raise UsageError(
                f"student and teacher give {name} of different shapes, {list(student)} and {list(teacher)}: "
                f"the {objective} objective needs the same classes or vocabulary, and the same positions"
            )


def soft_divergence(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over N of KL(teacher || student) of the softened distributions, in float32.

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> soft_divergence(logits, logits + 3, temperature=2.0).item()
    0.0
    """
    if len(student_NC) == 0:
        return 0.0 * student_NC.float().sum()
    student = torch.log_softmax(student_NC.float() / temperature, -1)
    teacher = torch.log_softmax(teacher_NC.float() / temperature, -1)
    divergence = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="sum")
    return divergence * (temperature**2 / len(student))


def logits_of(batch: DistillationBatch) -> tuple[str, ...]:
    """The names of the outputs that hold predictions.

    Raises:
        UsageError: one of the models has none, or not those of the other.
    """
    for names in (("logits",), QA_LOGITS):
        if all(name in batch.student and name in batch.teacher for name in names):
            return names
    raise UsageError(
        "the response objective compares logits, and student and teacher do not give the same kind: "
        f"{', '.join(batch.student)} and {', '.join(batch.teacher)}. Use models with a head for the task."
    )


def select(batch: DistillationBatch, logits: Tensor) -> Tensor:
    """The predictions that count, [N, C], from logits [B, C], [B, L] (answer positions) or [B, L, C]."""
    if logits.dim() == 2:
        is_span = "logits" not in batch.student
        # Padding is no place for an answer; both sides get the same value there and differ by nothing.
        return logits.float().masked_fill(~batch.attended(logits[..., None]), -1e9) if is_span else logits
    chosen = _chosen(batch.inputs, logits, batch.shifted)
    return (logits[:, :-1] if batch.shifted else logits)[chosen]


def select_labels(batch: DistillationBatch, logits: Tensor) -> Tensor:
    """The label [N] of each prediction of `select`, for logits [B, C] or [B, L, C]."""
    labels = batch.inputs["labels"]
    if logits.dim() == 2:
        return labels
    return (labels[:, 1:] if batch.shifted else labels)[_chosen(batch.inputs, logits, batch.shifted)]


def unit_of(batch: DistillationBatch) -> str:
    """What a mean over the predictions of `select` is a mean over, of `UNITS`."""
    logits = batch.student.get("logits")
    return "predictions" if logits is not None and logits.dim() == 3 else "examples"


def count_predictions(inputs: Mapping[str, Tensor], shifted: bool) -> int:
    """How many predictions `select` takes of logits [B, L, C], told before there are any."""
    names = ("decoder_input_ids", *MAIN_INPUTS)
    positions = next((inputs[name] for name in names if name in inputs), next(iter(inputs.values())))
    return int(_chosen(inputs, positions, shifted).sum())


def _chosen(inputs: Mapping[str, Tensor], positions: Tensor, shifted: bool) -> Tensor:
    labels = inputs.get("labels")
    chosen = labels.ne(-100) if labels is not None else attended(inputs, positions)
    return chosen[..., 1:] if shifted else chosen
