"""Attention: the student's attention distributions follow the teacher's (TinyBERT, Jiao et al. 2020, equation 7;
MiniLM, Wang et al. 2020, equation 3).

For each pair of layers of the layer mapping, KL(softmax(t) || softmax(s)) of the scores of every query that is a token;
the mean over the queries of an example and over heads, then examples, then pairs. Scores are computed here from queries
and keys, with the layer's scale, position bias and mask, so any attention implementation will do, also with grouped
queries. Where the models have different numbers of heads, the means over the heads are compared. Layers whose attention
was removed are left out; those with an operator other than full softmax attention are refused. For one pair this is
MiniLM's loss, which compares the last layers alone. Deviation: TinyBERT takes the mean squared error of unnormalised
scores and adds the layers up, whose weights do not carry over. Time O(H L S D), memory O(H L S) per layer.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from effitrans.attention.interface import Call
from effitrans.attention.reference import repeat_heads
from effitrans.distillation.mapping import FixedMapping, map_layers
from effitrans.distillation.objectives.base import DistillationBatch, Objective, ObjectiveConfig, mean_over
from effitrans.errors import UsageError


class AttentionConfig(ObjectiveConfig):
    """Settings of objective `attention`."""

    layer_mapping: FixedMapping = "uniform"
    """Which layer of the teacher each of the student's follows: `uniform` (evenly spread); `last` (the teacher's last
    layers); `skip` (each layer its original, in a student `layers=N` or pruned from the teacher); or pairs
    `{student: teacher}`, where i is the i-th layer (default uniform)."""


class Attention(Objective):
    """See the module's text. `pairs[stack]` maps layers of the student to the teacher's, counted from 0."""

    config_class: ClassVar[type[ObjectiveConfig]] = AttentionConfig
    records: ClassVar[tuple[str, ...]] = ("attention",)
    uncached: ClassVar[str | None] = "the masks of attention"

    def __init__(self, config: AttentionConfig, example: DistillationBatch) -> None:
        super().__init__(config, example)
        check_calls(example, "attention")
        self.pairs: dict[str, dict[int, int]] = {}
        for stack, student in example.student["attention"].items():
            layers = len(student), len(example.teacher["attention"][stack])
            states = map_layers(config.layer_mapping, *layers, example.kept_of(stack))
            pairs = {mine - 1: theirs - 1 for mine, theirs in states.items() if mine and theirs}
            sides = student, example.teacher["attention"][stack]
            self.pairs[stack] = _attending(pairs, *sides, isinstance(config.layer_mapping, str))
        if not any(self.pairs.values()):
            raise UsageError("layer_mapping pairs no layers that both have attention: name a pair that has")

    def forward(self, batch: DistillationBatch) -> Tensor:
        losses = []
        for stack, pairs in self.pairs.items():
            student, teacher = batch.student["attention"][stack], batch.teacher["attention"][stack]
            for mine, theirs in pairs.items():
                attended = batch.attended(student[mine].query_BHLD[:, 0], batch.is_decoder(stack))
                losses.append(divergence(student[mine], teacher[theirs], attended))
        return torch.stack(losses).mean()


def _attending(
    pairs: dict[int, int], student: Sequence[Call | None], teacher: Sequence[Call | None], is_named: bool
) -> dict[int, int]:
    """The pairs of layers that both have attention; a mapping that names others pair by pair is refused."""
    found = {}
    for mine, theirs in pairs.items():
        calls = {"student": (mine, student[mine]), "teacher": (theirs, teacher[theirs])}
        for who, (layer, call) in calls.items():
            if call is None and not is_named:
                raise UsageError(
                    f"layer_mapping {{{mine + 1}: {theirs + 1}}}: layer {layer + 1} of the {who} has no attention, "
                    "which was removed: name another"
                )
            if call is not None and call.operator != "full":
                raise UsageError(
                    f"objective 'attention' compares softmax distributions, and layer {layer + 1} of the {who} attends "
                    f"by operator {call.operator!r}: use objective 'relation'"
                )
        if all(call is not None for _, call in calls.values()):
            found[mine] = theirs
    return found


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


def check_calls(example: DistillationBatch, name: str) -> None:
    """Refuse models whose attention cannot be compared.

    Raises:
        UsageError: other stacks of layers, a stack without attention, or other positions.
    """
    student, teacher = example.student["attention"], example.teacher["attention"]
    if set(student) != set(teacher):
        raise UsageError(
            f"objective {name!r} compares stacks of layers; the student has {', '.join(student)} and the teacher "
            f"{', '.join(teacher)}. Use objective 'response', or models of the same form."
        )
    for stack, calls in student.items():
        firsts = [next((call for call in side if call is not None), None) for side in (calls, teacher[stack])]
        if any(call is None for call in firsts):
            raise UsageError(f"objective {name!r}: no layer of the {stack} of one of the models has attention")
        mine, theirs = (call.query_BHLD.shape[2] for call in firsts if call is not None)
        if mine != theirs:
            raise UsageError(
                f"student and teacher attend over different positions ({mine} and {theirs}), as with another patch "
                "size: use objective 'response'"
            )
