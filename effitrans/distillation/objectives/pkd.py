"""PKD: the first token's states, scaled to length 1, follow the teacher's (patient knowledge distillation, Sun et al.
2019, equation 7).

For each pair of layers of the layer mapping the squared distance of the two unit vectors; embeddings are left out, as
in the paper. The first token is what encoders classify by. In a causal stack it has seen nothing, so `distill` refuses
those: they are compared by `feature` or `cosine`.
Deviation: where widths differ, P is learned as in `feature`. Time: one projection a pair and example.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from effitrans.distillation.objectives.feature import Feature
from effitrans.errors import UsageError

if TYPE_CHECKING:
    from effitrans.distillation.config import Distillation


class PKD(Feature):
    """See the module's text."""

    first: ClassVar[int] = 1

    def choose(self, config: "Distillation", student_layers: int, teacher_layers: int, kept: object) -> dict | None:
        pairs = super().choose(config, student_layers, teacher_layers, kept)
        if pairs is None:
            return None
        pairs = {mine: theirs for mine, theirs in pairs.items() if mine and theirs}
        if not pairs:
            raise UsageError("layer_mapping pairs embeddings only, which 'pkd' leaves out: name a pair of layers")
        return pairs

    @staticmethod
    def distance(student_BLC: Tensor, teacher_BLC: Tensor, attended_BL: Tensor) -> Tensor:
        mine, theirs = (torch.nn.functional.normalize(side[:, 0], dim=-1) for side in (student_BLC, teacher_BLC))
        return (mine - theirs).square().sum(-1).mean()
