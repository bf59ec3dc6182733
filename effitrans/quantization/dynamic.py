"""Scheme `int8-dynamic`: swap linear layers and embedding tables for their int8 modules."""

from torch import nn

from effitrans.quantization.calibration import Examples
from effitrans.quantization.config import Int8
from effitrans.quantization.swaps import Outcome, build_int8, install, take


def apply(model: nn.Module, config: Int8, examples: Examples) -> Outcome:
    """Quantize `model` in place; needs no data.

    Raises:
        UsageError: nothing in the model can be quantized under this config, or a name to skip matches nothing.
    """
    taken, left = take(model, config)
    swaps = build_int8(taken, {})
    install(model, swaps)
    return Outcome(swaps, left)
