"""Where the teacher's outputs come from.

Training asks a `Teacher` for the outputs of a batch and does not care how they come about: here a model is run
under it, batch by batch. One that reads what an earlier epoch left on disk fits in its place.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.training.trainer import accepted_inputs

LABELS = ("labels", "start_positions", "end_positions")


class Teacher(Protocol):
    """Gives the outputs of the teacher for a batch, without gradients."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]: ...


class LiveTeacher:
    """Runs the model for every batch.

    Args:
        model: in evaluation mode.
        needs: options of the forward pass that are on, such as `output_hidden_states`.
    """

    def __init__(self, model: PreTrainedModel, needs: tuple[str, ...] = ()) -> None:
        self.model = model
        self.options = dict.fromkeys(needs, True)

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
        accepted = accepted_inputs(self.model, inputs)
        if not self.model.config.is_encoder_decoder:  # whose decoder reads the labels, moved by one
            accepted = {name: value for name, value in accepted.items() if name not in LABELS}
        return self.model(**accepted, **self.options, return_dict=True)


@contextmanager
def in_evaluation(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """The model in evaluation mode, on a device and without a cache; everything is given back at the end."""
    mode, home = model.training, next(model.parameters()).device
    use_cache = getattr(model.config, "use_cache", None)
    try:
        model.eval()
        if use_cache:
            model.config.use_cache = False
        if home != device:
            model.to(device)  # type: ignore[arg-type]
        yield
    finally:
        model.train(mode)
        if use_cache:
            model.config.use_cache = use_cache
        if home != device:
            model.to(home)  # type: ignore[arg-type]
