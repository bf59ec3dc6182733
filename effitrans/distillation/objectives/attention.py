"""Attention: the student's attention distributions follow the teacher's (TinyBERT, Jiao et al. 2020, equation 7;
MiniLM, Wang et al. 2020, equation 3).

For each pair of layers of the layer mapping, KL(softmax(t) || softmax(s)) of the scores of every query that is a
token; the mean over the queries of an example and over heads, then examples, then pairs. Scores are computed here
from queries and keys, with the layer's scale, position bias and mask, so any attention implementation will do, also
with grouped queries. Where the models have different numbers of heads, the means over the heads are compared.
Deviation: TinyBERT takes the squared error of unnormalised scores. Time O(H L S D), memory O(H L S) a layer.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from effitrans.attention.interface import Call
from effitrans.attention.reference import repeat_heads
from effitrans.distillation.mapping import DYNAMIC, map_layers
from effitrans.distillation.objectives.base import Lesson, Objective, mean_over
from effitrans.errors import UsageError

if TYPE_CHECKING:
    from effitrans.distillation.config import Distillation


class Attention(Objective):
    """See the module's text. `pairs[stack]` maps layers of the student to the teacher's, counted from 0."""

    needs_attention: ClassVar[bool] = True
    needs_masks: ClassVar[bool] = True
    follows_layers: ClassVar[bool] = True

    def __init__(self, config: "Distillation", example: Lesson) -> None:
        super().__init__(config, example)
        if config.layer_mapping == DYNAMIC:
            raise UsageError("layer_mapping 'dynamic' compares hidden states: objective 'attention' needs another one")
        check_calls(example, "attention")
        self.pairs: dict[str, dict[int, int]] = {}
        for stack, student in example.student["attention"].items():
            layers = len(student), len(example.teacher["attention"][stack])
            states = map_layers(config.layer_mapping, *layers, example.kept_of(stack))
            self.pairs[stack] = {mine - 1: theirs - 1 for mine, theirs in states.items() if mine and theirs}
        if not any(self.pairs.values()):
            raise UsageError("layer_mapping pairs embeddings only, which have no attention: name a pair of layers")

    def forward(self, lesson: Lesson) -> Tensor:
        losses = []
        for stack, pairs in self.pairs.items():
            student, teacher = lesson.student["attention"][stack], lesson.teacher["attention"][stack]
            attended = lesson.attended(student[0].query_BHLD[:, 0], lesson.is_decoder(stack))
            losses += [divergence(student[mine], teacher[theirs], attended) for mine, theirs in pairs.items()]
        return torch.stack(losses).mean()


def log_probabilities(call: Call) -> Tensor:
    """Log of the attention distribution of each query, float32 [B, H, L, S]; very negative where a key is hidden."""
    query, key = call.query_BHLD.float(), repeat_heads(call.key_BGSD.float(), call.query_BHLD.shape[1])
    scores = query @ key.transpose(2, 3) * call.scale
    bias, allowed = call.extras.get("position_bias"), call.mask.dense()
    if bias is not None:
        scores = scores + bias.float()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -1e9)
    return torch.log_softmax(scores, -1)


def divergence(student: Call, teacher: Call, attended_BL: Tensor) -> Tensor:
    """KL(teacher || student) of the attention of two layers: mean over the tokens of an example, then examples."""
    mine, theirs = log_probabilities(student), log_probabilities(teacher)
    if mine.shape[1] != theirs.shape[1]:
        mine, theirs = (logs.exp().mean(1, keepdim=True).clamp(min=1e-30).log() for logs in (mine, theirs))
    divergence_BHL = (theirs.exp() * (theirs - mine)).sum(-1)
    return mean_over(divergence_BHL.mean(1), attended_BL)


def check_calls(example: Lesson, name: str) -> None:
    """Refuse models whose attention cannot be compared.

    Raises:
        UsageError: other stacks of layers, or other positions.
    """
    student, teacher = example.student["attention"], example.teacher["attention"]
    if set(student) != set(teacher):
        raise UsageError(
            f"objective {name!r} compares stacks of layers; the student has {', '.join(student)} and the teacher "
            f"{', '.join(teacher)}. Use objective 'response', or models of the same form."
        )
    for stack, calls in student.items():
        mine, theirs = (call.query_BHLD.shape[2] for call in (calls[0], teacher[stack][0]))
        if mine != theirs:
            raise UsageError(
                f"student and teacher attend over different positions ({mine} and {theirs}), as with another patch "
                "size: use objective 'response'"
            )
