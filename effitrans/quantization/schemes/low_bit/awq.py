"""Scheme `awq`: activation-aware weight quantization.

AWQ (Lin et al. 2024): features with large inputs matter most; scaling feature j of the weight by `s_j > 1` and the
input by `1 / s_j` makes its rounding finer beside the others of its group. `s = (mean square input)^(alpha / 2)`, and
the range of each group is clipped where that helps its part of the output (`grid.py`). Both are searched together: of
alpha in 0, 0.1, ..., 1, each with the best clipping, the one of least output error, which the Hessian of GPTQ tells
without running anything. The factor is kept in the layer, one multiplication per input feature.

The paper scales by the mean absolute input, which is the same thing up to the shape of the distribution, one factor for
layers that share an input, chosen before clipping; and leaves queries and keys unclipped. On layers of MiniLM the error
that is left is the same within a percent, or less.

N output features, K input features.
"""

from typing import ClassVar

import torch
from torch import Tensor

from effitrans.quantization.modules.grid import Grid, best_grid, full_range_grid
from effitrans.quantization.schemes.low_bit.base import Rounded
from effitrans.quantization.schemes.low_bit.by_block import CalibratedLowBit, output_error, scaled_by

ALPHAS = tuple(step / 10 for step in range(11))


class AWQ(CalibratedLowBit):
    """Scheme `awq`: features with large inputs are scaled up and groups clipped; weights rounded to the nearest."""

    name: ClassVar[str] = "awq"

    def solve(self, weight_NK: Tensor, hessian_KK: Tensor, group_size: int) -> Rounded:
        scale_K, grid = best_scale(weight_NK, hessian_KK, self.bits, group_size)
        weight_NK, _, factor_K = scaled_by(weight_NK, hessian_KK, scale_K)
        return Rounded(grid.round(weight_NK), grid, factor_K)


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
        return float(output_error(weight_NK - rounded_NK, hessian_KK).sum())

    scale_K, grid = min(candidates, key=lambda candidate: error(*candidate))
    return None if bool((scale_K == 1).all()) else scale_K, grid
