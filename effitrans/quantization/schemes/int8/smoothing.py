"""SmoothQuant (Xiao et al. 2023): move outliers of a layer's input into its weight, where they are easier to round.

Feature j of the input is multiplied by `f_j = max|w_j|^(1 - alpha) / max|x_j|^alpha` and taken out of the weight, which
leaves the layer's function as it is. Layers that read the same tensor (query, key and value) share their factor, and
each such group takes the alpha with the least error of its int8 outputs on sampled rows, or none where none helps.

A factor costs a multiplication for each input value unless it is folded into what makes the input: the weight of a
norm, the value projection before an attention output, the up projection of a gated FFN. Whether that is right
depends on who else reads the tensor (in a post-norm model the residual does), which no module tells. So every fold is
tried and the model run: where its output changes, the fold is taken back and the layer keeps the factor.

M rows, K input features, N output features.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.quantization.calibration import Batch, Trace, main_output, relative_error, watch
from effitrans.quantization.modules.kernels import fixed_grid, quantize_channels, quantize_on, quantize_rows
from effitrans.quantization.modules.linear import weight_of

logger = logging.getLogger(__name__)

SAMPLED_ROWS = 256
_WORTH = 0.97
"""A factor must bring the error below this fraction of the error without it."""


@dataclass
class Smoothed:
    """What was done."""

    factors: dict[nn.Module, Tensor] = field(default_factory=dict)
    """Linear layer -> the factor float32 [K] that it must keep."""
    folded: int = 0
    """Layers whose factor is folded into what is before them."""


@dataclass
class InputStatistics:
    """What a layer's input is like."""

    largest_K: Tensor
    """Largest magnitude of each feature."""
    rows_MK: Tensor
    """A random sample of rows."""


def input_statistics(
    model: PreTrainedModel, layers: Sequence[nn.Module], batches: Sequence[Batch], seed: int
) -> dict[nn.Module, InputStatistics]:
    """Largest magnitudes and `SAMPLED_ROWS` rows of the inputs of layers that each run once in a forward pass."""
    generator = torch.Generator().manual_seed(seed)
    share = -(-SAMPLED_ROWS // len(batches))
    largest: dict[nn.Module, Tensor] = {}
    rows: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def look(layer: nn.Module, x_MK: Tensor) -> None:
        x_MK = x_MK.float()
        here_K = x_MK.abs().amax(0)
        largest[layer] = here_K if layer not in largest else torch.maximum(largest[layer], here_K)
        picked = torch.randperm(len(x_MK), generator=generator)[:share]
        rows[layer].append(x_MK[picked.to(x_MK.device)].clone())

    watch(model, layers, batches, look)
    return {layer: InputStatistics(largest[layer], torch.cat(rows[layer])[:SAMPLED_ROWS]) for layer in largest}


def smooth_layers(
    model: PreTrainedModel,
    linears: Sequence[nn.Module],
    found: Trace,
    batches: Sequence[Batch],
    *,
    alphas: Sequence[float],
    static: bool,
    fold: bool,
    seed: int,
) -> Smoothed:
    """Choose factors for the linear layers and fold them where that is right; changes `model` in place.

    Args:
        model: in evaluation mode and floating point.
        linears: the layers that will be int8 and may have a factor.
        found: what `trace` found about them.
        batches: calibration data.
        alphas: strengths to choose from.
        static: choose for activations with one fixed range, rather than one for each row.
        fold: fold where possible.
        seed: of the sample of rows.
    """
    allowed = {layer for layer in linears if found.calls.get(layer) == 1}
    groups = [[layer for layer in group if layer in allowed] for group in found.shared_input]
    groups = [group for group in groups if group]
    statistics = input_statistics(model, [group[0] for group in groups], batches, seed)
    chosen = []
    for group in groups:
        factor_K = best_factor(
            [weight_of(layer).detach().float() for layer in group], statistics[group[0]], alphas, static
        )
        if factor_K is not None:
            chosen.append((group, factor_K))
    result = Smoothed()
    folder = _Folder(model, batches[0], [group[0] for group, _ in chosen]) if fold and chosen else None
    for group, factor_K in chosen:
        if folder is not None and folder.fold(group, factor_K):
            result.folded += len(group)
        else:
            result.factors.update({layer: factor_K.clone() for layer in group})
    logger.info(
        "smoothing: %d of %d layers, %d of them folded", sum(len(g) for g, _ in chosen), len(linears), result.folded
    )
    return result


def best_factor(
    weights: Sequence[Tensor], seen: InputStatistics, alphas: Sequence[float], static: bool
) -> Tensor | None:
    """The factor [K] with the least error of the int8 outputs; None where it is not worth having."""
    largest_K = seen.largest_K.clamp_min(float(seen.largest_K.max()) * 1e-5 + 1e-20)
    weight_K = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
    weight_K = weight_K.clamp_min(float(weight_K.max()) * 1e-5 + 1e-20)
    best, least = None, _WORTH * _output_error(weights, seen.rows_MK, None, static)
    for alpha in alphas:
        factor_K = weight_K ** (1 - alpha) / largest_K**alpha
        factor_K = factor_K / factor_K.log().mean().exp()
        error = _output_error(weights, seen.rows_MK, factor_K, static)
        if error < least:
            best, least = factor_K, error
    return best


def _output_error(weights: Sequence[Tensor], rows_MK: Tensor, factor_K: Tensor | None, static: bool) -> float:
    scaled_MK = rows_MK if factor_K is None else rows_MK * factor_K
    if static:
        scale, zero_point = grid = fixed_grid(float(scaled_MK.min()), float(scaled_MK.max()))
        q_MK = quantize_on(scaled_MK, grid)
    else:
        q_MK, scale, zero_point = quantize_rows(scaled_MK)
    rounded_MK = (q_MK.float() - zero_point) * scale
    total = 0.0
    for weight_NK in weights:
        q_NK, scale_N = quantize_channels(weight_NK if factor_K is None else weight_NK / factor_K)
        exact_MN = rows_MK @ weight_NK.t()
        error_MN = rounded_MK @ (q_NK.float() * scale_N[:, None]).t() - exact_MN
        total += float(error_MN.square().sum() / exact_MN.square().sum().clamp_min(1e-30))
    return total


class _Folder:
    """Tries folds and takes back those that change what the model computes."""

    def __init__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[nn.Module]) -> None:
        self.model = model
        self.batch = {name: tensor[:4] for name, tensor in batch.items()}
        self.before = self._output()
        self.tolerance = 1e-4 if model.dtype == torch.float32 else 0.01
        self.norms = _norms_before(model, layers, self.batch)
        self.projections = dict(_projections_before(model))

    def _output(self) -> Tensor:
        with torch.no_grad():
            return main_output(self.model(**self.batch))

    @torch.no_grad()
    def fold(self, group: Sequence[nn.Module], factor_K: Tensor) -> bool:
        """Multiply what makes the group's input by the factor, and take it out of the group's weights."""
        parts = self._source(group[0], len(factor_K))
        if not parts:
            return False
        tensors = [*parts, *(_weight(layer) for layer in group)]
        saved = [tensor.clone() for tensor in tensors]
        for tensor in parts:
            tensor.mul_(factor_K.to(tensor.dtype).view(-1, *[1] * (tensor.dim() - 1)))
        for tensor in tensors[len(parts) :]:
            tensor.div_(factor_K.to(tensor.dtype))
        if relative_error([self._output()], [self.before]) <= self.tolerance:
            return True
        for tensor, old in zip(tensors, saved, strict=True):
            tensor.copy_(old)
        return False

    def _source(self, layer: nn.Module, width: int) -> list[Tensor]:
        """The tensors whose first dimension makes the features of the layer's input."""
        source = self.norms.get(layer) or self.projections.get(layer)
        if source is None:
            return []
        module, start = source
        weight, bias = _weight(module), getattr(module, "bias", None)
        parts = [weight] if bias is None else [weight, bias.data]
        if any(len(part) < start + width for part in parts) or (weight.dim() == 1 and len(weight) != width):
            return []
        return [part[start : start + width] for part in parts]


def _weight(module: nn.Module) -> Tensor:
    """The weight itself: [N, K] of a linear layer, [K] of a norm."""
    return weight_of(module).detach()


def _norms_before(
    model: PreTrainedModel, layers: Sequence[nn.Module], batch: Batch
) -> dict[nn.Module, tuple[nn.Module, int]]:
    """Layer -> (the norm whose output is its input, 0)."""
    made: dict[int, nn.Module] = {}
    alive: list[Tensor] = []
    found: dict[nn.Module, tuple[nn.Module, int]] = {}

    def after(module: nn.Module, args: object, output: Tensor) -> None:
        made[id(output)] = module
        alive.append(output)

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in made:
            found[module] = made[id(args[0])], 0

    norms = [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Norm") and getattr(getattr(module, "weight", None), "ndim", 0) == 1
    ]
    with ExitStack() as stack, torch.no_grad():
        for handle in [
            *(norm.register_forward_hook(after) for norm in norms),
            *(layer.register_forward_pre_hook(before) for layer in layers),
        ]:
            stack.callback(handle.remove)
        model(**batch)
    return found


def _projections_before(model: PreTrainedModel) -> Iterator[tuple[nn.Module, tuple[nn.Module, int]]]:
    """(layer, (linear layer whose outputs reach it without mixing or bending, index of the first of them))."""
    from effitrans.architectures import adapter

    try:
        layers = adapter(model).layers
    except UsageError:
        return
    for layer in layers:
        for site in layer.attention:
            if site.num_heads == site.num_key_value_heads:
                yield site.output, (site.value.module, site.value.start)
        if len(layer.feed_forward.inputs) == 2:
            yield layer.feed_forward.output, (layer.feed_forward.inputs[0], 0)
