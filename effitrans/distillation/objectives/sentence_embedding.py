"""Sentence embedding: the vectors that the student gives texts follow the teacher's.

Two terms of equal weight: 1 - cos(P s, t) between the vectors of a text (Reimers and Gurevych 2020 compare them by
their squared distance, which a task that is scored by cosines does not see), and the mean squared difference between
the cosines of all pairs of texts in the batch (similarity-preserving distillation, 2019, which compares
inner products normalised by row, and counts each text's with itself: its mean over N^2 is of another scale). P is a
linear projection where widths differ, learned with the student and dropped; the second term keeps the student's own
space alike. A text's vector is pooled as the task says. The second term relates the texts of one forward pass, so it
changes with the batch size under gradient accumulation. Time O(N^2 C) for N texts.

Shapes: N texts, C width.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from effitrans.distillation.objectives.base import DistillationBatch, Objective, ObjectiveConfig
from effitrans.errors import UsageError


class SentenceEmbedding(Objective):
    """See the module's text."""

    compares_sentences: ClassVar[bool] = True

    def __init__(self, config: ObjectiveConfig, example: DistillationBatch) -> None:
        super().__init__(config, example)
        if any("last_hidden_state" not in side for side in (example.student, example.teacher)):
            raise UsageError(
                "objective 'sentence_embedding' compares the vectors of texts, and a model with a head gives none: use "
                "'response', or models without a head (AutoModel) for an embedding task"
            )
        student, teacher = example.vectors()
        widths = student.shape[-1], teacher.shape[-1]
        self.projection = nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths)

    def forward(self, batch: DistillationBatch) -> Tensor:
        student, teacher = batch.vectors()
        directions = torch.nn.functional.cosine_similarity(self.projection(student), teacher, dim=-1)
        return (1 - directions).mean() + similarity_error(student, teacher)


def similarity_error(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Mean squared difference of the cosines of all pairs of different texts; 0 for a single text.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> similarity_error(x, torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item()
    1.0
    """
    count = len(student_NC)
    if count < 2:
        return 0.0 * student_NC.sum()
    mine, theirs = (torch.nn.functional.normalize(side, dim=-1) for side in (student_NC, teacher_NC))
    difference = mine @ mine.T - theirs @ theirs.T
    off_diagonal = ~torch.eye(count, dtype=torch.bool, device=difference.device)
    return difference[off_diagonal].square().mean()
