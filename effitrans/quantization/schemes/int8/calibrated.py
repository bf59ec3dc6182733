"""What the schemes that calibrate int8 do, in this order:

1. SmoothQuant moves outliers of the inputs into the weights (`smoothing.py`).
2. Under `int8-static` an observer chooses one range for the input of each layer (`observers.py`).
3. What rounding the weights changes in the mean of each output channel is taken out of the bias.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from effitrans.quantization.calibration import CalibrationData, trace
from effitrans.quantization.modules.integer import Int8Linear
from effitrans.quantization.replacement import QuantizationResult, Replacement, install, int8_replacements
from effitrans.quantization.scheme import DataUse, Scheme
from effitrans.quantization.schemes.int8.observers import input_ranges
from effitrans.quantization.schemes.int8.smoothing import InputStatistics, Smoothed, input_statistics, smooth_layers
from effitrans.quantization.selection import names_of


class CalibratedInt8(Scheme):
    """What `int8-smooth` and `int8-static` share."""

    uses_data_for: ClassVar[DataUse] = "calibration"

    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """Strengths of smoothing to choose from: how much of the activations' outliers is moved into the weights. Each
    layer takes the best one, or none."""
    fold: bool = True
    """Fold the factors into the norm or projection before the layer where that leaves the model's function as it
    is; elsewhere the layer keeps them. False: all layers keep them."""
    bias_correction: bool = True
    """Correct the biases by what rounding the weights changes in the mean output on the calibration data."""

    def calibrate(
        self, model: PreTrainedModel, data: CalibrationData, *, smooth: bool, observer: str | None
    ) -> QuantizationResult:
        """Quantize `model` in place.

        A layer that calibration never runs is quantized as under `int8-dynamic`, and named in the result.

        Args:
            model: in floating point.
            data: what to calibrate on.
            smooth: SmoothQuant first.
            observer: what chooses one range per layer. None: each token has its own.
        """
        selection = self.select(model)
        batches = data.batches(model, self)
        names = names_of(selection.linears)
        found = trace(model, names, batches)
        own = _unshared([target.module for target in selection.untied])
        smoothed = Smoothed()
        if smooth:
            static = observer is not None
            smoothed = smooth_layers(
                model, own, found, batches, alphas=self.alphas, static=static, fold=self.fold, seed=self.seed
            )
        arguments: dict[nn.Module, dict[str, Any]] = {
            layer: {"factor": factor} for layer, factor in smoothed.factors.items()
        }
        if observer is not None:
            seen = [layer for layer in names if layer in found.calls]
            for layer, limits in input_ranges(model, seen, batches, smoothed.factors, observer).items():
                arguments.setdefault(layer, {})["input_range"] = limits
        replacements = int8_replacements(selection.targets, arguments)
        corrected = 0
        if self.bias_correction:
            once = [layer for layer in own if found.calls.get(layer) == 1]
            corrected = _correct_biases(replacements, input_statistics(model, once, batches, self.seed))
        install(model, replacements)
        notes = {"smoothed": smoothed.folded + len(smoothed.factors), "folded": smoothed.folded, "corrected": corrected}
        unseen = [name for layer, name in names.items() if layer not in found.calls]
        notes_on_data = {"not_seen_in_calibration": unseen} if unseen else {}
        return QuantizationResult(replacements, selection.left, {**notes, **notes_on_data})


def _unshared(linears: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers whose weight no other one uses."""
    users: dict[int, int] = {}
    for layer in linears:
        users[id(layer.weight)] = users.get(id(layer.weight), 0) + 1
    return [layer for layer in linears if users[id(layer.weight)] == 1]


def _correct_biases(replacements: Sequence[Replacement], statistics: Mapping[nn.Module, InputStatistics]) -> int:
    """Give each int8 layer whose inputs are known a bias of its own that makes up for what rounding its weight changes
    in its mean output (Nagel et al. 2019, section 4.2, with means from data).

    What clipping its input changes stays: it comes from few tokens with outliers, and all others would pay for it.
    """
    corrected = 0
    for replacement in replacements:
        layer, quantized = replacement.target.module, replacement.quantized
        if layer not in statistics:
            continue
        assert isinstance(quantized, Int8Linear)
        mean_1K = statistics[layer].rows_MK.mean(0, keepdim=True)
        scaled_1K = mean_1K if quantized.factor is None else mean_1K * quantized.factor
        bias_N = torch.zeros_like(quantized.scale) if quantized.bias is None else quantized.bias.detach().float()
        rounded_1N = nn.functional.linear(scaled_1K, quantized.weight.float() * quantized.scale[:, None], bias_N)
        correction_N = (layer(mean_1K.to(layer.weight.dtype)).float() - rounded_1N).squeeze(0)  # type: ignore[arg-type]
        quantized.bias = nn.Parameter((bias_N + correction_N).to(layer.weight.dtype), requires_grad=False)  # type: ignore[arg-type]
        corrected += 1
    return corrected
