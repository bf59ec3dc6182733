"""Embeddings: the output of the student's embedding layer follows the teacher's (TinyBERT, Jiao et al. 2020,
equation 9).

The error is that of `feature`, for the states before the first layer alone; the paper's mean squared error is this
one times the mean square of the teacher's entries. Time: one projection a token.
"""

from typing import TYPE_CHECKING, ClassVar

from effitrans.distillation.objectives.feature import Feature

if TYPE_CHECKING:
    from effitrans.distillation.config import Distillation


class Embeddings(Feature):
    """See the module's text."""

    follows_layers: ClassVar[bool] = False

    def choose(self, config: "Distillation", student_layers: int, teacher_layers: int, kept: object) -> dict | None:
        return {0: 0}
