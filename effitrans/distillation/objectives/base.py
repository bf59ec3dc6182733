"""The interface of an objective, and which positions of a batch are compared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from effitrans.distillation.config import Distillation


@dataclass(frozen=True)
class Lesson:
    """One batch as student and teacher saw it.

    Args:
        student: the student's outputs (a `ModelOutput`).
        teacher: the teacher's, without gradients.
        inputs: the batch; `labels`, where there are any, are -100 where there is nothing to predict.
        shifted: whether the logits at a position predict the next token (causal language models).
        problem_type: "regression", "multi_label_classification", or None where logits are those of one choice.
    """

    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    shifted: bool = False
    problem_type: str | None = None

    def attended(self, states: Tensor, decoder: bool = False) -> Tensor:
        """Boolean [B, L]: the positions of hidden states [B, L, C] that hold a token rather than padding."""
        mask = self.inputs.get("decoder_attention_mask" if decoder else "attention_mask")
        if mask is None and decoder and "labels" in self.inputs:
            mask = self.inputs["labels"].ne(-100)
        if mask is None or mask.shape != states.shape[:2]:  # pixels and patches are never padded
            return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return mask.bool()


class Objective(nn.Module, ABC):
    """A loss between the outputs of a student and of a teacher.

    Subclasses are built once, from the config and from the outputs of both models for one batch, whose shapes
    say what has to be compared. What they learn themselves (projections) are ordinary parameters, which are
    trained, checkpointed and then thrown away.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Options of both forward passes that must be on, such as `output_hidden_states`."""

    @abstractmethod
    def __init__(self, config: "Distillation", example: Lesson) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, lesson: Lesson) -> Tensor:
        """A scalar: the mean over the examples (or predicted tokens) of the batch."""
