"""Embedding layer: the output of the student's embedding layer follows the teacher's (TinyBERT, Jiao et al. 2020,
equation 9).

The error is that of `feature`, for the states before the first layer alone; the paper's mean squared error is this
one times the mean square of the teacher's entries. Time: one projection per token.
"""

from typing import Any, ClassVar

from effitrans.distillation.objectives.base import ObjectiveConfig
from effitrans.distillation.objectives.feature import Feature


class EmbeddingLayer(Feature):
    """See the module's text."""

    config_class: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig

    def choose(self, config: Any, student_layers: int, teacher_layers: int, kept: object) -> dict | None:
        return {0: 0}
