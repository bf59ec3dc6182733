"""Feature: the student's hidden states follow the teacher's (FitNets, Romero et al. 2015; TinyBERT, Jiao et al. 2020).

For each pair (student state s, teacher state t) of the layer mapping, and each token: |P s - t|^2 / |t|^2, a relative
squared error, so that layers and models of different scale weigh the same and no other example of the batch changes a
value. The mean is over the tokens of an example, then examples, then pairs. P is a linear projection, learned with the
student and dropped with the objective; where widths agree there is none. Deviation: TinyBERT's error is not relative,
and it projects always; its code takes the mean squared error of a pair over all entries, padding too, and adds the
pairs up. That is the error here times the mean square of the teacher's entries and the number of pairs. FitNets takes
half the sum of squares. Time: one C_s x C_t product per pair and token; memory: the hidden states of both models.

With the mapping `dynamic` the layers are paired anew in every batch, so that the sum of errors is smallest; embeddings
follow embeddings. That takes an error for each of S x T pairs, and the pairs change with the batch size under gradient
accumulation.

Shapes: B batch, L length, C width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from effitrans.distillation.mapping import DYNAMIC, LayerMapping, map_layers, nearest
from effitrans.distillation.objectives.base import (
    DistillationBatch,
    Objective,
    ObjectiveConfig,
    hidden_states,
    mean_over,
)
from effitrans.errors import UsageError


class FeatureConfig(ObjectiveConfig):
    """Settings of objective `feature`, and of `cosine`, `pkd` and `feed_forward`."""

    layer_mapping: LayerMapping = "uniform"
    """Which hidden state of the teacher each of the student's follows: `uniform` (evenly spread); `last` (the
    teacher's last layers); `skip` (each layer its original, in a student `layers=N` or pruned from the teacher);
    `dynamic` (the nearest in each batch, in order); or pairs `{student: teacher}`, where 0 is the embeddings and i the
    output of the i-th layer (default uniform)."""


class Feature(Objective):
    """See the module's text. `pairs[stack]` maps hidden states of the student to the teacher's, 0 the embeddings;
    None where they are chosen batch by batch. Subclasses change the distance, or the pairs.
    """

    config_class: ClassVar[type[ObjectiveConfig]] = FeatureConfig
    needs: ClassVar[tuple[str, ...]] = ("output_hidden_states",)
    first: ClassVar[int] = 0
    """The first state that is compared: 0, the embeddings, or 1."""

    def __init__(self, config: Any, example: DistillationBatch) -> None:
        super().__init__(config, example)
        student, teacher = self.states(example.student), self.states(example.teacher)
        if set(student) != set(teacher):
            raise UsageError(
                f"the feature objective compares stacks of layers; the student has {', '.join(student) or 'none'} and "
                f"the teacher {', '.join(teacher) or 'none'}. Use objective 'response', or models of the same form."
            )
        self.pairs: dict[str, dict[int, int] | None] = {}
        self.projections = nn.ModuleDict()
        for stack in student:
            layers = len(student[stack]) - 1, len(teacher[stack]) - 1
            pairs = self.choose(config, *layers, example.kept_of(stack))
            self.pairs[stack] = pairs
            for mine in range(self.first, layers[0] + 1) if pairs is None else pairs:
                theirs = teacher[stack][-1 if pairs is None else pairs[mine]]
                self._add_projection(f"{stack}_{mine}", student[stack][mine], theirs)

    def choose(self, config: FeatureConfig, student_layers: int, teacher_layers: int, kept: object) -> dict | None:
        """The pairs of states of one stack; None: batch by batch."""
        if config.layer_mapping == DYNAMIC:
            if student_layers > teacher_layers:
                raise UsageError(
                    f"layer_mapping 'dynamic' needs a teacher with at least the student's {student_layers} layers "
                    f"and it has {teacher_layers}: use 'uniform'"
                )
            return None
        pairs = map_layers(config.layer_mapping, student_layers, teacher_layers, kept)  # type: ignore[arg-type]
        pairs = {mine: theirs for mine, theirs in pairs.items() if min(mine, theirs) >= self.first}
        if not pairs:
            raise UsageError("layer_mapping pairs embeddings only, which this objective leaves out: name two layers")
        return pairs

    @staticmethod
    def states(outputs: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
        """What is compared, by stack: of the embeddings (where they are), then of each layer, each [B, L, C]."""
        return hidden_states(outputs)

    @staticmethod
    def distance(student_BLC: Tensor, teacher_BLC: Tensor, attended_BL: Tensor) -> Tensor:
        """A scalar: the mean over examples."""
        return relative_error(student_BLC, teacher_BLC, attended_BL)

    def _add_projection(self, name: str, student_BLC: Tensor, teacher_BLC: Tensor) -> None:
        if student_BLC.shape[:2] != teacher_BLC.shape[:2]:
            raise UsageError(
                f"hidden states of student and teacher have different positions ({list(student_BLC.shape[:2])} and "
                f"{list(teacher_BLC.shape[:2])}), as with another patch size: use objective 'response'"
            )
        if student_BLC.shape[-1] != teacher_BLC.shape[-1]:
            self.projections[name] = nn.Linear(student_BLC.shape[-1], teacher_BLC.shape[-1])

    def forward(self, batch: DistillationBatch) -> Tensor:
        student, teacher = self.states(batch.student), self.states(batch.teacher)
        errors = []
        for stack, pairs in self.pairs.items():
            attended = batch.attended(student[stack][-1], decoder=batch.is_decoder(stack))
            states = {
                mine: self._project(f"{stack}_{mine}", student[stack][mine])
                for mine in (range(self.first, len(student[stack])) if pairs is None else pairs)
            }
            targets = teacher[stack]
            pairs = self._nearest(states, targets, attended) if pairs is None else pairs
            errors += [self.distance(states[mine], targets[theirs].float(), attended) for mine, theirs in pairs.items()]
        return torch.stack(errors).mean()

    def _project(self, name: str, states: Tensor) -> Tensor:
        return self.projections[name](states.float()) if name in self.projections else states.float()

    @torch.no_grad()
    def _nearest(self, states: dict[int, Tensor], targets: Sequence[Tensor], attended: Tensor) -> dict[int, int]:
        rows = [
            torch.stack([self.distance(state, target.float(), attended) for target in targets[1:]])
            for mine, state in states.items()
            if mine
        ]
        chosen = {mine: theirs + 1 for mine, theirs in enumerate(nearest(torch.stack(rows)), 1)}
        return chosen if self.first else {0: 0} | chosen


def relative_error(student_BLC: Tensor, teacher_BLC: Tensor, attended_BL: Tensor) -> Tensor:
    """Mean over examples of the mean over their tokens of |s - t|^2 / |t|^2.

    >>> t = torch.ones(1, 2, 4)
    >>> relative_error(torch.zeros(1, 2, 4), t, torch.ones(1, 2, dtype=torch.bool)).item()
    1.0
    """
    error_BL = (student_BLC - teacher_BLC).square().sum(-1) / teacher_BLC.square().sum(-1).clamp(min=1e-12)
    return mean_over(error_BL, attended_BL)
