"""Where the teacher's outputs come from.

Training asks a `Teacher` for the outputs of a batch and does not care how they come about: here a model is run
under it, batch by batch. One that reads what an earlier epoch left on disk fits in its place.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.checkpoint.accepting import evaluation_mode
from effitrans.distillation.recording import Recorder
from effitrans.errors import UsageError
from effitrans.tasks.encoding import accepted_inputs
from effitrans.tasks.padding import LABELS

PREFIX = "teacher_"
"""Before the names of inputs that the teacher's own tokenizer made."""


class Teacher(Protocol):
    """Gives the outputs of the teacher for a batch, without gradients."""

    model: PreTrainedModel

    def prepare(self, accelerator: Any) -> None:
        """Called once before training, when processes and devices are known."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]: ...


def teacher_batch(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The batch as the teacher reads it: what its own tokenizer made, where the batch holds that; else the batch."""
    own = {name.removeprefix(PREFIX): value for name, value in inputs.items() if name.startswith(PREFIX)}
    return own or inputs


class LiveTeacher:
    """Runs the model for every batch, on the device of the batch.

    Args:
        model: in evaluation mode.
        needs: options of the forward pass that are on, such as `output_hidden_states`.
        records: what of the inside of its layers the outputs hold besides, of `recording.RECORDERS`; for "attention"
            the model's attention must go `through_interface`.
    """

    def __init__(self, model: PreTrainedModel, needs: Sequence[str] = (), records: Sequence[str] = ()) -> None:
        self.model = model
        self.options = dict.fromkeys(needs, True)
        self.recorder = Recorder(model, records)

    def prepare(self, accelerator: Any) -> None:
        """Nothing: the model runs when it is asked."""

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        inputs = teacher_batch(inputs)
        device = next(iter(inputs.values())).device
        if self.model.device != device:
            self.model.to(device)  # type: ignore[arg-type]
        accepted = accepted_inputs(self.model, inputs)
        if not self.model.config.is_encoder_decoder:  # whose decoder reads the labels, moved by one
            accepted = {name: value for name, value in accepted.items() if name not in LABELS}
        with self.recorder.running():
            outputs = self.model(**accepted, **self.options, return_dict=True)
        return {**outputs, **self.recorder.take()}


def refuse_overflow(outputs: Mapping[str, Any], teacher: nn.Module, name: str = "teacher") -> None:
    """Refuse outputs of a teacher with NaN or infinite values, from which a student cannot learn.

    Raises:
        UsageError: names the teacher, the output and the dtype it was computed in.
    """
    for key, value in outputs.items():
        parts = [value] if isinstance(value, Tensor) else value if isinstance(value, (tuple, list)) else []
        tensors = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
        if all(tensor.isfinite().all() for tensor in tensors):
            continue
        dtype = str(tensors[0].dtype).removeprefix("torch.")
        remedy = "its weights or its inputs are broken: check it by `effitrans eval`"
        if dtype == "float16":
            remedy = "what lies in between goes beyond what float16 holds. Load it in bfloat16 or float32, and use "
            remedy += "precision 'bf16' or 'fp32'"
        raise UsageError(f"the {name} {type(teacher).__name__} gives NaN or infinite {key} in {dtype}: {remedy}")


@contextmanager
def in_evaluation(model: PreTrainedModel) -> Iterator[None]:
    """The model in evaluation mode and without a cache; its mode, cache and device are given back at the end."""
    home, use_cache = model.device, getattr(model.config, "use_cache", None)
    try:
        if use_cache:
            model.config.use_cache = False
        with evaluation_mode(model):
            yield
    finally:
        if use_cache:
            model.config.use_cache = use_cache
        if model.device != home:
            model.to(home)  # type: ignore[arg-type]
