"""Cosine: the directions of the student's hidden states follow the teacher's (DistilBERT, Sanh et al. 2019, section 2).

As `feature`, with 1 - cos(P s, t) for the distance of two states; the mean is over the tokens of an example, then
examples, then pairs. The authors' code compares the last states alone, and takes the mean over all tokens of a batch at
once, which is the same where texts are equally long. Time and memory as `feature`.
"""

import torch
from torch import Tensor

from effitrans.distillation.objectives.base import mean_over
from effitrans.distillation.objectives.feature import Feature


class Cosine(Feature):
    """See the module's text."""

    @staticmethod
    def distance(student_BLC: Tensor, teacher_BLC: Tensor, attended_BL: Tensor) -> Tensor:
        return mean_over(1 - torch.nn.functional.cosine_similarity(student_BLC, teacher_BLC, dim=-1), attended_BL)
