"""Logit MSE: the mean squared difference of the logits (Ba and Caruana 2014, equation 3; Kim et al. 2021 find it as
good as the divergence or better).

For the same predictions as `response`, regressions included, without a temperature; the mean is over classes and
predictions, as Kim et al. have it. Ba and Caruana take half the sum over C classes, C/2 times as much. For answer spans
padding is left out. Time and memory O(N C).

Shapes: B batch, L length, C classes or vocabulary, N predictions.
"""

from typing import ClassVar

import torch
from torch import Tensor

from effitrans.distillation.objectives.base import DistillationBatch, Objective, ObjectiveConfig, mean_over
from effitrans.distillation.objectives.response import check_shapes, logits_of, select, unit_of


class LogitMSE(Objective):
    """See the module's text."""

    compares_sentences: ClassVar[bool] = True
    needs_all_logits: ClassVar[bool] = True
    takes_several: bool = True

    def __init__(self, config: ObjectiveConfig, example: DistillationBatch) -> None:
        super().__init__(config, example)
        check_shapes(example, "logit_mse")
        self.unit = unit_of(example)

    def forward(self, batch: DistillationBatch) -> Tensor:
        return torch.stack([self._error(batch, name) for name in logits_of(batch)]).mean()

    @staticmethod
    def _error(batch: DistillationBatch, name: str) -> Tensor:
        student, teacher = batch.student[name], batch.teacher[name]
        if name != "logits":  # [B, L]: one score a position
            return mean_over((student - teacher).float().square(), batch.attended(student[..., None]))
        student, teacher = select(batch, student).float(), select(batch, teacher).float()
        return (student - teacher).square().sum() / max(student.numel(), 1)
