"""Schemes `int8-smooth` and `int8-static`: int8 with what calibration data can add.

1. SmoothQuant moves outliers of the inputs into the weights (`smoothing.py`).
2. Under `int8-static` an observer chooses one range for the input of each layer (`observers.py`).
3. What rounding the weights changes in the mean of each output channel is taken out of the bias.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.quantization.calibration import Batch, Examples, trace, watch
from effitrans.quantization.config import Int8Smooth, Int8Static
from effitrans.quantization.modules.integer import Int8Linear
from effitrans.quantization.observers import BINS, OBSERVERS, Seen
from effitrans.quantization.smoothing import InputStatistics, Smoothed, input_statistics, smooth
from effitrans.quantization.swaps import Outcome, Swap, build_int8, install, take, with_tables

logger = logging.getLogger(__name__)


def apply(model: PreTrainedModel, config: Int8Smooth | Int8Static, examples: Examples) -> Outcome:
    """Quantize `model` in place.

    A layer that calibration never runs is quantized as under `int8-dynamic`, and named in the outcome.

    Raises:
        UsageError: no, too few or bad calibration data; nothing to quantize. The model is then untouched.
    """
    taken, left = take(model, config)
    batches = examples.batches(model, config)
    _, untied = with_tables(taken)
    linears = [candidate.module for candidate in taken if not candidate.is_embedding]
    names = {candidate.module: candidate.paths[0] for candidate in taken if not candidate.is_embedding}
    found = trace(model, names, batches)
    static = isinstance(config, Int8Static)
    own = _unshared([candidate.module for candidate in untied])
    smoothed = Smoothed()
    if not isinstance(config, Int8Static) or config.smooth:
        smoothed = smooth(
            model, own, found, batches, alphas=config.alphas, static=static, fold=config.fold, seed=config.seed
        )
    arguments: dict[nn.Module, dict[str, Any]] = {
        layer: {"factor": factor} for layer, factor in smoothed.factors.items()
    }
    if isinstance(config, Int8Static):
        seen = [layer for layer in linears if layer in found.calls]
        for layer, limits in input_ranges(model, seen, batches, smoothed.factors, config.observer).items():
            arguments.setdefault(layer, {})["input_range"] = limits
    swaps = build_int8(taken, arguments)
    corrected = 0
    if config.bias_correction:
        once = [layer for layer in own if found.calls.get(layer) == 1]
        corrected = _correct_biases(swaps, input_statistics(model, once, batches, config.seed))
    install(model, swaps)
    notes = {"smoothed": smoothed.folded + len(smoothed.factors), "folded": smoothed.folded, "corrected": corrected}
    unseen = [names[layer] for layer in linears if layer not in found.calls]
    return Outcome(swaps, left, {**notes, **({"not_seen_in_calibration": unseen} if unseen else {})})


def _unshared(linears: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers whose weight no other one uses."""
    users: dict[int, int] = {}
    for layer in linears:
        users[id(layer.weight)] = users.get(id(layer.weight), 0) + 1
    return [layer for layer in linears if users[id(layer.weight)] == 1]


def _correct_biases(swaps: Sequence[Swap], statistics: Mapping[nn.Module, InputStatistics]) -> int:
    """Give each int8 layer whose inputs are known a bias of its own that makes up for what rounding its weight changes
    in its mean output (Nagel et al. 2019, section 4.2, with means from data).

    What clipping its input changes stays: it comes from few tokens with outliers, and all others would pay for it.
    """
    corrected = 0
    for swap in swaps:
        layer, quantized = swap.candidate.module, swap.built
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


def input_ranges(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    batches: Sequence[Batch],
    factors: Mapping[nn.Module, Tensor],
    observer: str,
) -> dict[nn.Module, tuple[float, float]]:
    """The range of each layer's input, after its factor, that an observer chooses."""
    lows: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    highs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    chooser = OBSERVERS[observer]()

    def scaled(layer: nn.Module, x_MK: Tensor) -> Tensor:
        return x_MK.float() * factors[layer] if layer in factors else x_MK.float()

    def extremes(layer: nn.Module, x_MK: Tensor) -> None:
        low, high = torch.aminmax(scaled(layer, x_MK))
        lows[layer].append(low)
        highs[layer].append(high)

    watch(model, layers, batches, extremes)
    seen = {layer: Seen(torch.stack(lows[layer]).cpu(), torch.stack(highs[layer]).cpu()) for layer in layers}
    if chooser.needs_histogram:
        counts = {layer: torch.zeros(BINS) for layer in layers}

        def count(layer: nn.Module, x_MK: Tensor) -> None:
            counts[layer] += torch.histc(scaled(layer, x_MK), BINS, *seen[layer].range).cpu()

        watch(model, layers, batches, count)
        seen = {layer: Seen(known.lows, known.highs, counts[layer]) for layer, known in seen.items()}
    return {layer: chooser.choose(known) for layer, known in seen.items()}
