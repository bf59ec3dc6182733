"""PKD: the first token's states, scaled to length 1, follow the teacher's (patient knowledge distillation, Sun et al.
2019, equation 7).

For each pair of layers of the layer mapping the squared distance of the two unit vectors; embeddings are left out, as
in the paper. The first token is what encoders classify by. In a causal stack it has seen nothing, so `distill` refuses
those: they are compared by `feature` or `cosine`.

A squared distance is a sum over the C entries of a vector, as in the paper; the mean is over examples, then pairs. The
authors' code takes the mean over the entries too, so a weight from there is divided by C here (100 of 768 entries:
0.13). Deviation: where widths differ, P is learned as in `feature`. Time: one projection per pair and example.
"""

from typing import ClassVar

import torch
from torch import Tensor

from effitrans.distillation.objectives.feature import Feature


class PKD(Feature):
    """See the module's text."""

    compares_first_tokens: ClassVar[bool] = True
    first: ClassVar[int] = 1

    @staticmethod
    def distance(student_BLC: Tensor, teacher_BLC: Tensor, attended_BL: Tensor) -> Tensor:
        mine, theirs = (torch.nn.functional.normalize(side[:, 0], dim=-1) for side in (student_BLC, teacher_BLC))
        return (mine - theirs).square().sum(-1).mean()
