"""RKD: the distances and angles between examples follow the teacher's (Park et al. 2019, equations 4 to 9).

An example is the mean of its last hidden states over its tokens, or what its task pools by. Distances between the
examples of a batch are divided by their mean; angles are those at each corner of every triplet. Both are compared by
the Huber loss, distances with weight 1 and angles with weight 2, as in the paper. Widths need not match. The loss
relates the examples of one forward pass, so unlike the other objectives it changes with the batch size under gradient
accumulation; a batch of one has nothing to relate and gives 0. Time O(N^3 + N^2 C), memory O(N^2 C + N^3).

Both terms are means over distinct pairs and triplets, as in the paper. The authors' code averages over all N^2 pairs
and N^3 triplets, of which those with an example twice add 0: its distances are (N - 1)/N and its angles
(N - 1)(N - 2)/N^2 times those here (0.97 and 0.91 for 32 examples), so a weight from there is multiplied by as much.

Shapes: N examples, C width.
"""

from typing import ClassVar

import torch
from torch import Tensor

from effitrans.distillation.objectives.base import DistillationBatch, Objective, ObjectiveConfig, hidden_states
from effitrans.errors import UsageError

ANGLE_WEIGHT = 2.0
"""Weight of the angles against the distances."""


class RKD(Objective):
    """See the module's text."""

    needs: ClassVar[tuple[str, ...]] = ("output_hidden_states",)
    compares_sentences: ClassVar[bool] = True

    def __init__(self, config: ObjectiveConfig, example: DistillationBatch) -> None:
        super().__init__(config, example)
        for outputs in (example.student, example.teacher):
            if not hidden_states(outputs):
                raise UsageError("objective 'rkd' needs hidden states, which one of the models does not give")

    def forward(self, batch: DistillationBatch) -> Tensor:
        student, teacher = batch.vectors()
        return distance_loss(student, teacher) + ANGLE_WEIGHT * angle_loss(student, teacher)


def distance_loss(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Huber loss of the pairwise distances, each divided by its mean; 0 for fewer than two examples.

    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> distance_loss(x, 5 * x).item()
    0.0
    """
    count = len(student_NC)
    if count < 2:
        return 0.0 * student_NC.sum()
    pairs = torch.triu_indices(count, count, 1, device=student_NC.device)
    mine, theirs = (_relative_distances(side, pairs) for side in (student_NC, teacher_NC))
    return torch.nn.functional.smooth_l1_loss(mine, theirs)


def _relative_distances(side_NC: Tensor, pairs: Tensor) -> Tensor:
    distances = (side_NC[pairs[0]] - side_NC[pairs[1]]).square().sum(-1).clamp(min=1e-12).sqrt()
    return distances / distances.mean()


def angle_loss(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Huber loss of the cosines of the angles i-j-k at j over all triplets; 0 for fewer than three examples."""
    count = len(student_NC)
    if count < 3:
        return 0.0 * student_NC.sum()
    distinct = ~torch.eye(count, dtype=torch.bool, device=student_NC.device)
    triplets = distinct[:, :, None] & distinct[:, None, :] & distinct[None]
    mine, theirs = (_angles(side)[triplets] for side in (student_NC, teacher_NC))
    return torch.nn.functional.smooth_l1_loss(mine, theirs)


def _angles(side_NC: Tensor) -> Tensor:
    """[N, N, N]: the cosine of the angle at the first index between the other two."""
    towards = side_NC[None] - side_NC[:, None]
    towards = towards / towards.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    return towards @ towards.transpose(1, 2)
