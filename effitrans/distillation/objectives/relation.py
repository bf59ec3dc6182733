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
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from effitrans.attention.interface import Call
from effitrans.config import Width
from effitrans.distillation.objectives.attention import check_calls
from effitrans.distillation.objectives.base import DistillationBatch, Objective, ObjectiveConfig, mean_over
from effitrans.distillation.recording import last_attending
from effitrans.errors import UsageError

RELATIONS = {"query": "query_BHLD", "key": "key_BGSD", "value": "value_BGSD"}
"""Name in `relations` -> field of a call."""


class RelationConfig(ObjectiveConfig):
    """Settings of objective `relation`."""

    relations: tuple[Literal["query", "key", "value"], ...] = Field(default=("query", "key", "value"), min_length=1)
    """What is compared (default all three: MiniLMv2; `value` with objective `attention`: MiniLM)."""
    heads: Width | None = None
    """Relation heads that the joined heads are cut into; must divide the widths of both models (default: as many of
    the teacher's heads as do)."""
    layer: Width | None = None
    """Layer of the teacher, counted from 1, that the student's last one follows (default the last; for teachers of 24
    layers the paper takes one of the upper middle)."""

    def stored_calls(self) -> tuple[int | None, Sequence[str]]:
        return self.layer, [RELATIONS[name] for name in self.relations]


class Relation(Objective):
    """See the module's text. `layers[stack]` are the student's layer and the teacher's, counted from 0, and
    `heads[stack][relation]` is the number of relation heads.
    """

    config_class: ClassVar[type[ObjectiveConfig]] = RelationConfig
    records: ClassVar[tuple[str, ...]] = ("attention",)

    def __init__(self, config: RelationConfig, example: DistillationBatch) -> None:
        super().__init__(config, example)
        check_calls(example, "relation")
        self.relations = config.relations
        self.layers: dict[str, tuple[int, int]] = {}
        self.heads: dict[str, dict[str, int]] = {}
        for stack, student in example.student["attention"].items():
            teacher = example.teacher["attention"][stack]
            if config.layer is not None and config.layer > len(teacher):
                raise UsageError(
                    f"relation: layer {config.layer}: the teacher's {stack} has layers 1 to {len(teacher)}"
                )
            theirs = last_attending(teacher) if config.layer is None else config.layer - 1
            if teacher[theirs] is None:
                raise UsageError(
                    f"relation: layer {theirs + 1} of the teacher's {stack} has no attention: name another"
                )
            self.layers[stack] = last_attending(student), theirs
            pair = student[self.layers[stack][0]], teacher[theirs]
            self.heads[stack] = {name: _heads(config.heads, name, *pair) for name in self.relations}

    def forward(self, batch: DistillationBatch) -> Tensor:
        losses = []
        for stack, (mine, theirs) in self.layers.items():
            student, teacher = batch.student["attention"][stack][mine], batch.teacher["attention"][stack][theirs]
            attended = batch.attended(student.query_BHLD[:, 0], batch.is_decoder(stack))
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
            f"relation: heads {wanted} does not divide the widths of the {name} heads, {widths[0]} in the student and "
            f"{widths[1]} in the teacher: use a divisor of {math.gcd(*widths)}, or leave it out"
        )
    return wanted
