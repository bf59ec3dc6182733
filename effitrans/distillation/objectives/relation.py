"""Relation: how the tokens of an example relate in the student's last layer follows a layer of the teacher (MiniLMv2,
Wang et al. 2021, equations 4 to 6; its value relation is that of MiniLM, Wang et al. 2020, equation 4).

The vectors of all heads, of the queries say, are joined and cut into A relation heads of equal width d; the relation of
a head is softmax(X X^T / sqrt(d)), and the loss KL(teacher || student), the mean over heads and the tokens of an
example, then examples, then the sum over queries, keys and values: the paper's, with weights of 1. So neither the heads
nor the widths of the models need match. A last layer whose attention was removed is passed over. Only tokens are
related, no padding. Time O(L^2 C), memory O(A L^2).

Shapes: B batch, L length, C joined width of the heads, A relation heads.
"""

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from effitrans.attention.interface import Call
from effitrans.distillation.objectives.attention import check_calls
from effitrans.distillation.objectives.base import Lesson, Objective, mean_over
from effitrans.distillation.recording import last_attending
from effitrans.errors import UsageError

if TYPE_CHECKING:
    from effitrans.distillation.config import Distillation

RELATIONS = {"query": "query_BHLD", "key": "key_BGSD", "value": "value_BGSD"}
"""Name in `relations` -> field of a call."""


class Relation(Objective):
    """See the module's text. `layers[stack]` are the student's layer and the teacher's, counted from 0, and
    `heads[stack][relation]` is the number of relation heads.
    """

    records: ClassVar[tuple[str, ...]] = ("attention",)

    def __init__(self, config: "Distillation", example: Lesson) -> None:
        super().__init__(config, example)
        check_calls(example, "relation")
        self.relations = config.relations
        self.layers: dict[str, tuple[int, int]] = {}
        self.heads: dict[str, dict[str, int]] = {}
        for stack, student in example.student["attention"].items():
            teacher = example.teacher["attention"][stack]
            if config.relation_layer is not None and config.relation_layer > len(teacher):
                raise UsageError(
                    f"relation_layer {config.relation_layer}: the teacher's {stack} has layers 1 to {len(teacher)}"
                )
            theirs = last_attending(teacher) if config.relation_layer is None else config.relation_layer - 1
            if teacher[theirs] is None:
                raise UsageError(f"relation_layer {theirs + 1} of the teacher's {stack} has no attention: name another")
            self.layers[stack] = last_attending(student), theirs
            pair = student[self.layers[stack][0]], teacher[theirs]
            self.heads[stack] = {name: _heads(config.relation_heads, name, *pair) for name in self.relations}

    def forward(self, lesson: Lesson) -> Tensor:
        losses = []
        for stack, (mine, theirs) in self.layers.items():
            student, teacher = lesson.student["attention"][stack][mine], lesson.teacher["attention"][stack][theirs]
            attended = lesson.attended(student.query_BHLD[:, 0], lesson.is_decoder(stack))
            parts = []
            for name in self.relations:
                learned, target = (
                    log_relations(getattr(call, RELATIONS[name]), self.heads[stack][name], attended)
                    for call in (student, teacher)
                )
                parts.append(mean_over((target.exp() * (target - learned)).sum(-1).mean(1), attended))
            losses.append(torch.stack(parts).sum())
        return torch.stack(losses).mean()


def log_relations(heads_BHLD: Tensor, relation_heads: int, attended_BL: Tensor) -> Tensor:
    """Log of the relations of each token to the others, float32 [B, A, L, L]; very negative to padding."""
    joined_BLC = heads_BHLD.float().transpose(1, 2).flatten(2)
    split_BALd = joined_BLC.unflatten(2, (relation_heads, -1)).transpose(1, 2)
    scores = split_BALd @ split_BALd.transpose(2, 3) * split_BALd.shape[-1] ** -0.5
    return torch.log_softmax(scores.masked_fill(~attended_BL[:, None, None, :], -1e9), -1)


def _heads(wanted: int | None, name: str, student: Call, teacher: Call) -> int:
    """The number of relation heads: as asked, else the most of the teacher's heads that divide both widths."""
    sides = [getattr(call, RELATIONS[name]) for call in (student, teacher)]
    widths = [side.shape[1] * side.shape[3] for side in sides]
    if wanted is None:
        return math.gcd(sides[1].shape[1], *widths)
    if any(width % wanted for width in widths):
        raise UsageError(
            f"relation_heads {wanted} does not divide the widths of the {name} heads, {widths[0]} in the student and "
            f"{widths[1]} in the teacher: use a divisor of {math.gcd(*widths)}, or leave it out"
        )
    return wanted
