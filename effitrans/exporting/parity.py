"""Does an engine compute what the model computes?

Two things are asked on every example batch. The relative L2 error of every output, padding left out, is within a bound;
and the predictions (the largest entry of the last dimension of the first output) are the same, except for ties: rows
whose two largest entries differ by less than four times the root mean square error that the bound allows.

In a model with int8 layers a sum taken in another order can move an activation by a whole step, so two right
computations differ by about as much as rounding explains; the bound is then at least `MARGIN` times what the model's
own outputs move when the outputs of its int8 layers are changed in the fifth digit.
"""

from collections.abc import Callable, Mapping, Sequence

import pydantic
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.exporting.graph import floating_outputs
from effitrans.exporting.layers import rounds_its_input
from effitrans.inference.noise import rounding_noise

MARGIN = 8
TIE = 4
TOLERANCE = 1e-4

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""An engine: inputs by name -> outputs by name."""


class Parity(pydantic.BaseModel):
    """What the comparison found."""

    examples: int
    """Rows that were compared."""
    predictions: int
    """Predictions that were compared; 0 for outputs that are no scores."""
    ties: int
    """Predictions that differ between entries that are equal up to rounding."""
    wrong: int
    """Other predictions that differ."""
    error: float
    """Largest relative L2 error of an output over a batch."""
    bound: float
    """What was allowed where the error came closest to it, or went furthest beyond."""

    @property
    def holds(self) -> bool:
        """Whether the engine computes the model."""
        return self.wrong == 0 and self.error <= self.bound


def compare(
    run: Run, model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], tolerance: float = TOLERANCE
) -> Parity:
    """Run both on every batch.

    Args:
        run: the engine.
        model: what it is compared with.
        batches: inputs by name.
        tolerance: relative L2 error that is accepted in any case.
    """
    examples = predictions = ties = wrong = 0
    error = bound = 0.0
    worst = -1.0
    layers: list[nn.Module] = [module for module in model.modules() if rounds_its_input(module)]
    for batch in batches:
        expected, received = floating_outputs(model, batch), run(batch)
        noise = rounding_noise(lambda batch=batch: list(floating_outputs(model, batch).values()), layers)
        examples += len(next(iter(batch.values())))
        for place, ((name, right), moved) in enumerate(zip(expected.items(), noise, strict=True)):
            theirs = received[name].to(right.dtype)
            if theirs.shape != right.shape:
                return Parity(examples=examples, predictions=0, ties=0, wrong=0, error=float("inf"), bound=tolerance)
            right, theirs = _unpadded(right, batch), _unpadded(theirs, batch)
            size = max(float(right.norm()), 1e-12)
            allowed = max(tolerance, MARGIN * moved / size)
            found = float((theirs - right).norm()) / size
            found = found if found == found else float("inf")
            if found / allowed > worst:
                worst, error, bound = found / allowed, found, allowed
            if place == 0 and right.shape[-1] > 1 and "logits" in name:
                tie = TIE * allowed * size / right.numel() ** 0.5
                counted = _predictions(theirs, right, tie)
                predictions, ties, wrong = predictions + counted[0], ties + counted[1], wrong + counted[2]
    return Parity(examples=examples, predictions=predictions, ties=ties, wrong=wrong, error=error, bound=bound)


def _unpadded(output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The entries of tokens that are there, where an output has one for each token."""
    mask = batch.get("attention_mask")
    if mask is None or output.shape[: mask.dim()] != mask.shape:
        return output
    return output[mask.bool()]


def _predictions(theirs: Tensor, right: Tensor, tie: float) -> tuple[int, int, int]:
    """(predictions, those that differ in a tie, those that differ otherwise)."""
    ours = right.argmax(-1, keepdim=True)
    other = theirs.argmax(-1, keepdim=True)
    differ = ours != other
    close = right.gather(-1, ours) - right.gather(-1, other) <= tie
    return ours.numel(), int((differ & close).sum()), int(torch.logical_and(differ, ~close).sum())
