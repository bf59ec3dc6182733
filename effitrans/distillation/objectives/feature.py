"""Feature: the student's hidden states follow the teacher's (FitNets, Romero et al. 2015; TinyBERT, Jiao et al. 2020).

For each pair (student state s, teacher state t) of the layer mapping, and each token: |P s - t|^2 / |t|^2, a relative
squared error, so that layers and models of different scale weigh the same and no batch-mate changes a value. The mean
is over the tokens of an example, then examples, then pairs. P is a linear projection, learned with the student and
dropped with the objective; where widths agree there is none. Deviation: TinyBERT's error is not relative, and it
projects always. Time: one C_s x C_t product a pair and token; memory: the hidden states of both models.

Shapes: B batch, L length, C width.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from effitrans.distillation.mapping import map_layers
from effitrans.distillation.objectives.base import Lesson, Objective
from effitrans.errors import UsageError

if TYPE_CHECKING:
    from effitrans.distillation.config import Distillation

States = Mapping[str, Sequence[Tensor]]


class Feature(Objective):
    """See the module's text. `pairs[stack]` maps hidden states of the student to the teacher's, 0 the embeddings."""

    needs: ClassVar[tuple[str, ...]] = ("output_hidden_states",)

    def __init__(self, config: "Distillation", example: Lesson) -> None:
        super().__init__(config, example)
        student, teacher = hidden_states(example.student), hidden_states(example.teacher)
        if set(student) != set(teacher):
            raise UsageError(
                f"the feature objective compares stacks of layers; the student has {', '.join(student) or 'none'} and "
                f"the teacher {', '.join(teacher) or 'none'}. Use objective 'response', or models of the same form."
            )
        self.pairs: dict[str, dict[int, int]] = {}
        self.projections = nn.ModuleDict()
        for stack in student:
            self.pairs[stack] = map_layers(config.layer_mapping, len(student[stack]) - 1, len(teacher[stack]) - 1)
            for mine, theirs in self.pairs[stack].items():
                self._add_projection(f"{stack}_{mine}", student[stack][mine], teacher[stack][theirs])

    def _add_projection(self, name: str, student_BLC: Tensor, teacher_BLC: Tensor) -> None:
        if student_BLC.shape[:2] != teacher_BLC.shape[:2]:
            raise UsageError(
                f"hidden states of student and teacher have different positions ({list(student_BLC.shape[:2])} and "
                f"{list(teacher_BLC.shape[:2])}), as with another patch size: use objective 'response'"
            )
        if student_BLC.shape[-1] != teacher_BLC.shape[-1]:
            self.projections[name] = nn.Linear(student_BLC.shape[-1], teacher_BLC.shape[-1])

    def forward(self, lesson: Lesson) -> Tensor:
        student, teacher = hidden_states(lesson.student), hidden_states(lesson.teacher)
        errors = []
        for stack, pairs in self.pairs.items():
            attended = lesson.attended(student[stack][0], decoder=stack == "decoder")
            for mine, theirs in pairs.items():
                states = student[stack][mine].float()
                name = f"{stack}_{mine}"
                projected = self.projections[name](states) if name in self.projections else states
                errors.append(relative_error(projected, teacher[stack][theirs].float(), attended))
        return torch.stack(errors).mean()


def hidden_states(outputs: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
    """Hidden states by stack: the embeddings, then the output of each layer, each [B, L, C]."""
    names = {"encoder": "encoder_hidden_states", "decoder": "decoder_hidden_states", "layers": "hidden_states"}
    return {stack: outputs[name] for stack, name in names.items() if outputs.get(name) is not None}


def relative_error(student_BLC: Tensor, teacher_BLC: Tensor, attended_BL: Tensor) -> Tensor:
    """Mean over examples of the mean over their tokens of |s - t|^2 / |t|^2.

    >>> t = torch.ones(1, 2, 4)
    >>> relative_error(torch.zeros(1, 2, 4), t, torch.ones(1, 2, dtype=torch.bool)).item()
    1.0
    """
    error_BL = (student_BLC - teacher_BLC).square().sum(-1) / teacher_BLC.square().sum(-1).clamp(min=1e-12)
    weights = attended_BL.float()
    return ((error_BL * weights).sum(1) / weights.sum(1).clamp(min=1)).mean()
