"""DKD: decoupled knowledge distillation (Zhao et al. 2022, equations 7 and 8).

The divergence of `response` is the sum of one between (labelled class, all others), and one among the other classes
that is weighted with the teacher's doubt in the label. Here the two have weights of their own: T^2 * (KL of the pair +
`non_target_weight` * KL among the others), the mean over examples or predicted tokens: the loss of the authors' code
with alpha 1 and beta `non_target_weight`; another alpha is the objective's weight, and `non_target_weight` beta /
alpha. With two classes there is only one other, and the second term is 0. Time and memory: two softmaxes over the
classes.

Shapes: C classes or vocabulary, N predictions.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from effitrans.distillation.objectives.base import DistillationBatch, Objective, ObjectiveConfig
from effitrans.distillation.objectives.response import (
    SoftenedConfig,
    check_shapes,
    logits_of,
    select,
    select_labels,
    unit_of,
)
from effitrans.errors import UsageError


class DKDConfig(SoftenedConfig):
    """Settings of objective `dkd`."""

    non_target_weight: float = Field(default=8.0, ge=0)
    """Weight of the divergence among the classes other than the label (default 8, that of the paper)."""


class DKD(Objective):
    """See the module's text."""

    config_class: ClassVar[type[ObjectiveConfig]] = DKDConfig
    compares_sentences: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    takes_several: bool = True

    def __init__(self, config: DKDConfig, example: DistillationBatch) -> None:
        super().__init__(config, example)
        check_shapes(example, "dkd")
        one_choice = example.problem_type in (None, "single_label_classification")
        if "labels" not in example.inputs or not one_choice or logits_of(example) != ("logits",):
            raise UsageError(
                "objective 'dkd' separates the labelled class from the others, so it needs labels that are classes "
                "or tokens: use 'response' for data without labels, regressions, several labels and answer spans"
            )
        self.unit = unit_of(example)
        self.temperature, self.weight = config.temperature, config.non_target_weight

    def forward(self, batch: DistillationBatch) -> Tensor:
        logits = batch.student["logits"], batch.teacher["logits"]
        student, teacher = (select(batch, side) for side in logits)
        return decoupled_divergence(student, teacher, select_labels(batch, logits[0]), self.temperature, self.weight)


def decoupled_divergence(
    student_NC: Tensor, teacher_NC: Tensor, labels_N: Tensor, temperature: float, weight: float
) -> Tensor:
    """T^2 times the mean over N of KL(label against the rest) + weight * KL(among the rest), in float32."""
    if len(student_NC) == 0:
        return 0.0 * student_NC.float().sum()
    is_label = torch.nn.functional.one_hot(labels_N, student_NC.shape[-1]).bool()
    pairs, rests = [], []
    for logits in (student_NC, teacher_NC):
        logs = torch.log_softmax(logits.float() / temperature, -1)
        rest = logs.masked_fill(is_label, -torch.inf)
        pairs.append(torch.stack([logs[is_label], torch.logsumexp(rest, -1)], -1))
        # The label's own place must add 0, and not 0 * infinity.
        rests.append(torch.log_softmax(rest, -1).masked_fill(is_label, 0.0))
    divergences = [(theirs.exp() * (theirs - mine)).sum(-1) for mine, theirs in (pairs, rests)]
    return temperature**2 * (divergences[0] + weight * divergences[1]).mean()
