"""The interface of an objective, and which positions of a batch are compared."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from effitrans.config import Config
from effitrans.tasks.pooling import pool

UNITS = ("labels", "predictions", "examples")
"""What parts of the loss are means over: labels that are not -100, tokens or classes that are predicted, examples."""


@dataclass(frozen=True)
class DistillationBatch:
    """One batch as student and teacher saw it.

    Args:
        student: the student's outputs (those of its `ModelOutput`), and what an objective `records`, by its name.
        teacher: the teacher's, without gradients.
        inputs: the batch; `labels`, where there are any, are -100 where there is nothing to predict.
        shifted: whether the logits at a position predict the next token (causal language models).
        problem_type: of the models' configs: "regression" and "multi_label_classification" are outputs of their own;
            "single_label_classification" and None are logits of one choice.
        pooling: how the hidden states of a text become its vector; names of `effitrans.tasks.pooling`.
        kept: stack -> the teacher's layers, counted from 0, that pruning left in the student, where that is known.
        teacher_inputs: the batch as the teacher's tokenizer encoded it, where that is another one; None: `inputs`.
    """

    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    shifted: bool = False
    problem_type: str | None = None
    pooling: str | Sequence[str] = "mean"
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    teacher_inputs: Mapping[str, Tensor] | None = None

    def attended(self, states: Tensor, decoder: bool = False) -> Tensor:
        """Boolean [B, L]: the positions of hidden states [B, L, C] that hold a token rather than padding."""
        return attended(self.inputs, states, decoder)

    def is_decoder(self, stack: str) -> bool:
        """Whether this is the decoder of a model with two stacks."""
        return stack == "decoder" and self.student.get("encoder_last_hidden_state") is not None

    def kept_of(self, stack: str) -> Sequence[int] | None:
        """The teacher's layers that a stack of the student is made of; None where that is not known."""
        if stack == "layers" and len(self.kept) == 1:
            return next(iter(self.kept.values()))
        return self.kept.get(stack)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The vectors [N, C] of the texts, student's and teacher's, from the last hidden states."""
        theirs = self.inputs if self.teacher_inputs is None else self.teacher_inputs
        sides = ((self.student, self.inputs), (self.teacher, theirs))
        mine, other = (pooled(last_state(outputs).float(), inputs, self.pooling) for outputs, inputs in sides)
        return mine, other


class ObjectiveConfig(Config):
    """The settings of an objective. Objectives with further settings extend it, in the file of their class."""

    weight: float = Field(default=1.0, gt=0)
    """Factor of its value in the loss (default 1)."""

    def stored_calls(self) -> tuple[int | None, Sequence[str]] | None:
        """What a cache keeps of the recorded attention: a layer of the teacher, counted from 1 (None: the last with
        attention), and fields of its `Call`. None: nothing.
        """
        return None


class Objective(nn.Module, ABC):
    """A loss between the outputs of a student and of a teacher.

    Subclasses are built once, from their settings and from the outputs of both models for one batch, whose shapes
    say what has to be compared. What they learn themselves (projections) are ordinary parameters, which are
    trained, checkpointed and then thrown away.
    """

    config_class: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    """Its settings."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Options of both forward passes that must be on, such as `output_hidden_states`."""
    records: ClassVar[tuple[str, ...]] = ()
    """What it reads of the inside of both models' layers, of `recording.RECORDERS`."""
    uncached: ClassVar[str | None] = None
    """In words, what it reads that is not cached."""
    compares_sentences: ClassVar[bool] = False
    """Whether it compares whole texts alone, so that the models may cut them into other tokens."""
    compares_first_tokens: ClassVar[bool] = False
    """Whether it compares first tokens alone, which have seen nothing in a causal model."""
    needs_labels: ClassVar[bool] = False
    """Whether it reads the labels."""
    needs_all_logits: ClassVar[bool] = False
    """Whether it compares logits rather than probabilities, so that the k largest do not suffice."""

    unit: str = "examples"
    """What its value is a mean over, one of `UNITS`. Instances may set it."""
    takes_several: bool = False
    """Whether its mean over several teachers is a target. Instances may take it back."""

    @abstractmethod
    def __init__(self, config: Any, example: DistillationBatch) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, batch: DistillationBatch) -> Tensor:
        """A scalar: the mean over the examples (or what `unit` says) of the batch."""


def attended(inputs: Mapping[str, Tensor], states: Tensor, decoder: bool = False) -> Tensor:
    """Boolean [B, L]: the positions of hidden states [B, L, C] that hold a token of this batch rather than padding."""
    mask = inputs.get("decoder_attention_mask" if decoder else "attention_mask")
    if mask is None and decoder and "labels" in inputs:
        mask = inputs["labels"].ne(-100)
    if mask is None or mask.shape != states.shape[:2]:  # pixels and patches are never padded
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return mask.bool()


def hidden_states(outputs: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
    """Hidden states by stack: the embeddings, then the output of each layer, each [B, L, C]."""
    names = {"encoder": "encoder_hidden_states", "decoder": "decoder_hidden_states", "layers": "hidden_states"}
    return {stack: outputs[name] for stack, name in names.items() if outputs.get(name) is not None}


def last_state(outputs: Mapping[str, Any]) -> Tensor:
    """The last hidden states [B, L, C], of the encoder where there are two stacks."""
    for name in ("encoder_last_hidden_state", "last_hidden_state"):
        if outputs.get(name) is not None:
            return outputs[name]
    return next(iter(hidden_states(outputs).values()))[-1]


def pooled(states_BLC: Tensor, inputs: Mapping[str, Tensor], pooling: str | Sequence[str]) -> Tensor:
    """[B, C]: the vector of each text."""
    return pool(states_BLC, attended(inputs, states_BLC), pooling)


def mean_over(values_BL: Tensor, attended_BL: Tensor) -> Tensor:
    """The mean over examples of the mean over their tokens."""
    weights = attended_BL.to(values_BL.dtype)
    return ((values_BL * weights).sum(1) / weights.sum(1).clamp(min=1)).mean()
