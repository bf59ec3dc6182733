"""Schemes `rtn`, `gptq` and `awq`: linear layers with packed weights of few bits.

AWQ (Lin et al. 2024): features with large inputs matter most; scaling feature j of the weight by `s_j > 1` and the
input by `1 / s_j` makes its rounding finer beside the others of its group. `s = (mean square input)^(alpha / 2)`, and
the range of each group is clipped where that helps its part of the output (`grid.py`). Both are searched together: of
alpha in 0, 0.1, ..., 1, each with the best clipping, the one of least output error, which the Hessian of GPTQ tells
without running anything. The factor is kept in the layer, one multiplication for each input feature.

The paper scales by the mean absolute input, which is the same thing up to the shape of the distribution, one factor for
layers that share an input, chosen before clipping; and leaves queries and keys unclipped. On layers of MiniLM the error
that is left is the same within a percent, or less.

The layers of a block are quantized together, on the inputs that the blocks before it give when quantized.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effitrans.errors import UsageError
from effitrans.quantization import gptq
from effitrans.quantization.calibration import Batch, Examples, by_stage, trace, watch
from effitrans.quantization.config import AWQ, GPTQ, RTN, LowBit
from effitrans.quantization.modules.grid import Grid, best_grid, full_range_grid
from effitrans.quantization.modules.packed import PackedLinear
from effitrans.quantization.selection import Candidate
from effitrans.quantization.swaps import Outcome, Swap, build_int8, install, take, with_tables

logger = logging.getLogger(__name__)

ALPHAS = tuple(step / 10 for step in range(11))


def apply(model: PreTrainedModel, config: LowBit, examples: Examples) -> Outcome:
    """Quantize `model` in place. Tables, and output layers tied to them, are stored in int8.

    Raises:
        UsageError: groups that do not divide a layer's width; no or bad calibration data for a scheme that needs
            them; nothing to quantize. The model is then untouched.
    """
    taken, left = take(model, config)
    tables, linears = with_tables(taken)
    if not linears:
        raise UsageError(
            f"{type(config).__name__.lower()} stores linear layers in few bits, and skip={config.skipped} "
            "leaves none: use int8-dynamic for tables alone"
        )
    names = {candidate.module: candidate.paths[0] for candidate in linears}
    check_groups(names, config.group_size)
    swaps: list[Swap] = []
    unseen: list[str] = []
    if isinstance(config, RTN):
        packed = _Packer(config)
        swaps = [Swap(candidate, packed.build(candidate.module, None)) for candidate in linears]
        install(model, swaps)
    else:
        swaps, unseen = _calibrated(model, config, linears, names, examples.batches(model, config))
    swaps += (tied := build_int8(tables, {}))
    install(model, tied)
    return Outcome(swaps, left, {"not_seen_in_calibration": unseen} if unseen else {})


def _calibrated(
    model: PreTrainedModel,
    config: LowBit,
    linears: list[Candidate],
    names: Mapping[nn.Module, str],
    batches: list[Batch],
) -> tuple[list[Swap], list[str]]:
    """Quantize block by block; layers that calibration never runs are rounded to the nearest, and named."""
    found = trace(model, names, batches)
    candidate_of = {candidate.module: candidate for candidate in linears}
    packed, swaps = _Packer(config), []
    for stage in by_stage(found.order, names):
        hessians = hessians_of(model, stage, batches, found.calls)
        for layer in stage:
            swaps.append(Swap(candidate_of[layer], packed.build(layer, hessians.pop(layer))))
            swaps[-1].install(model)
        logger.info("%s: %d of %d layers", type(config).__name__.lower(), len(swaps), len(linears))
    unseen = [layer for layer in names if layer not in found.calls]
    swaps += (rounded := [Swap(candidate_of[layer], packed.build(layer, None)) for layer in unseen])
    install(model, rounded)
    if unseen:
        logger.info("rounded to the nearest, as calibration never runs them: %s", ", ".join(names[x] for x in unseen))
    return swaps, [names[layer] for layer in unseen]


def hessians_of(
    model: PreTrainedModel, layers: list[nn.Module], batches: list[Batch], calls: Mapping[nn.Module, int]
) -> dict[nn.Module, Tensor]:
    """`X' X / M` of the inputs X [M, K] of each layer: float32 [K, K]."""
    sums: dict[nn.Module, Tensor] = {}
    rows: dict[nn.Module, int] = dict.fromkeys(layers, 0)

    def add(layer: nn.Module, x_MK: Tensor) -> None:
        x_MK = x_MK.float()
        product = x_MK.t() @ x_MK
        sums[layer] = product if layer not in sums else sums[layer].add_(product)
        rows[layer] += len(x_MK)

    watch(model, layers, batches, add, calls)
    return {layer: total / rows[layer] for layer, total in sums.items()}


class _Packer:
    """Makes the packed layer of a linear one; layers that share a weight share the packed one."""

    def __init__(self, config: LowBit) -> None:
        self.config = config
        self.done: dict[int, tuple[Tensor, Grid, Tensor | None]] = {}

    def build(self, linear: nn.Module, hessian_KK: Tensor | None) -> PackedLinear:
        """Without a Hessian, rounded to the nearest."""
        weight = linear.weight
        if id(weight) not in self.done:
            weight_NK = (weight.t() if isinstance(linear, Conv1D) else weight).detach().float()  # type: ignore[union-attr,operator]
            self.done[id(weight)] = self._quantize(weight_NK, hessian_KK)
        q_NK, grid, factor_K = self.done[id(weight)]
        grid = replace(grid, scale_NG=grid.scale_NG.clone())  # a buffer of each layer, which files cannot share
        factor_K = None if factor_K is None else factor_K.clone()
        built = PackedLinear.from_integers(q_NK, grid, linear.bias, factor_K)  # type: ignore[arg-type]
        return built.train(linear.training)

    def _quantize(self, weight_NK: Tensor, hessian_KK: Tensor | None) -> tuple[Tensor, Grid, Tensor | None]:
        config = self.config
        size = config.group_size or weight_NK.shape[1]
        if hessian_KK is None:
            grid = full_range_grid(weight_NK, config.bits, size)
            return grid.round(weight_NK), grid, None
        scale_K = None
        if isinstance(config, AWQ) or (isinstance(config, GPTQ) and config.scaling):
            scale_K, grid = best_scale(weight_NK, hessian_KK, config.bits, size)
        if scale_K is not None:
            weight_NK = weight_NK * scale_K
            hessian_KK = hessian_KK / (scale_K[:, None] * scale_K)
        if isinstance(config, GPTQ):
            q_NK, grid = gptq.quantize_weight(
                weight_NK,
                hessian_KK,
                config.bits,
                size,
                act_order=config.act_order,
                damping=config.damping,
                block=config.block,
            )
        else:
            q_NK = grid.round(weight_NK)
        return q_NK, grid, None if scale_K is None else 1 / scale_K


def best_scale(weight_NK: Tensor, hessian_KK: Tensor, bits: int, group_size: int) -> tuple[Tensor | None, Grid]:
    """AWQ's factor of each input feature and the grid of the weight that is multiplied by it.

    The factor is float32 [K], or None where none is best. The output error is never above that of the weight rounded to
    the nearest.
    """
    size_K = hessian_KK.diagonal().float().clamp_min(0).sqrt()
    size_K = size_K.clamp_min(float(size_K.max()) * 1e-4 + 1e-12)
    candidates = [(torch.ones_like(size_K), full_range_grid(weight_NK, bits, group_size))]
    for alpha in ALPHAS:
        scale_K = size_K**alpha
        scale_K = scale_K / (scale_K.max() * scale_K.min()).sqrt()
        scaled_KK = hessian_KK / (scale_K[:, None] * scale_K)
        candidates.append((scale_K, best_grid(weight_NK * scale_K, bits, group_size, scaled_KK)))

    def error(scale_K: Tensor, grid: Grid) -> float:
        rounded_NK = grid.values(grid.round(weight_NK * scale_K)) / scale_K
        return float(gptq.objective(weight_NK - rounded_NK, hessian_KK).sum())

    scale_K, grid = min(candidates, key=lambda candidate: error(*candidate))
    return None if bool((scale_K == 1).all()) else scale_K, grid


def check_groups(names: Mapping[nn.Module, str], group_size: int | None) -> None:
    """Refuse groups that do not divide the width of every layer."""
    if group_size is None:
        return
    widths = {name: _in_features(layer) for layer, name in names.items()}
    for name, width in widths.items():
        if width % group_size:
            fitting = [size for size in (256, 128, 64, 32, 16, 8, 4) if all(w % size == 0 for w in widths.values())]
            remedy = f"choose {' or '.join(map(str, fitting[:3]))}, or none" if fitting else "choose none"
            raise UsageError(
                f"group_size {group_size} does not divide the {width} input features of {name}: {remedy} "
                "(one group a row), or skip that layer"
            )


def _in_features(linear: nn.Module) -> int:
    return linear.weight.shape[0 if isinstance(linear, Conv1D) else 1]  # type: ignore[union-attr,index]
