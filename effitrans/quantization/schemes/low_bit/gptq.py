"""Scheme `gptq`: round a weight one input feature at a time, and let the features to come make up for it.

GPTQ (Frantar et al. 2022): the objective of a layer with weight W and inputs X [M, K] is
`|X W' - X Q'|^2 = sum of rows of (W - Q) H (W - Q)'`
with `H = X' X`. Rounding feature j of all rows at once, the best change of the features after it is
`-(w_j - q_j) / U_jj * U_j,j+1:` with U the upper Cholesky factor of the inverse of H (algorithm 1 of the paper).
Features go in the order of falling H_jj ("act-order"); the groups and their grids are those of the original order,
fixed beforehand, so that nothing but the integers depends on the order and nothing more has to be stored.

Rows do not interact. GPTQ is greedy, and whether clipping a few weights pays shows at the end alone. So three results
compete for each row: the greedy pass on grids that cover all weights, on grids fitted to the inputs, and rounding to
the nearest. The objective is never above that of any of them, row by row.

Time O(K^3 + N K^2) per layer, memory O(K^2). N output features, K input features.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from effitrans.config import Count
from effitrans.quantization.modules.grid import Grid, best_grid, full_range_grid
from effitrans.quantization.schemes.low_bit.awq import best_scale
from effitrans.quantization.schemes.low_bit.base import Rounded
from effitrans.quantization.schemes.low_bit.by_block import CalibratedLowBit, output_error, scaled_by


class GPTQ(CalibratedLowBit):
    """Scheme `gptq`: weights rounded one input feature after the other, those to come making up for the error."""

    name: ClassVar[str] = "gptq"

    act_order: bool = True
    """Begin with the features whose inputs are largest."""
    damping: Annotated[float, Field(gt=0)] = 0.01
    """Added to the diagonal of the Hessian, as a fraction of its mean."""
    block: Count = 128
    """Features after which the rest of the weight is updated at once; changes only the speed."""
    scaling: bool = False
    """Scale the input features first, as `awq` does."""

    def solve(self, weight_NK: Tensor, hessian_KK: Tensor, group_size: int) -> Rounded:
        scale_K = best_scale(weight_NK, hessian_KK, self.bits, group_size)[0] if self.scaling else None
        weight_NK, hessian_KK, factor_K = scaled_by(weight_NK, hessian_KK, scale_K)
        settings = {"act_order": self.act_order, "damping": self.damping, "block": self.block}
        q_NK, grid = quantize_weight(weight_NK, hessian_KK, self.bits, group_size, **settings)
        return Rounded(q_NK, grid, factor_K)


def quantize_weight(
    weight_NK: Tensor,
    hessian_KK: Tensor,
    bits: int,
    group_size: int,
    *,
    act_order: bool = True,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[Tensor, Grid]:
    """Quantize the weight of a layer for the inputs it sees.

    Args:
        weight_NK: floating point.
        hessian_KK: `X' X`, or any multiple of it.
        bits, group_size: of the grid.
        act_order, damping, block: see `GPTQ`.

    Returns:
        q uint8 [N, K] and the grid of each row.
    """
    weight_NK = weight_NK.float()
    full = full_range_grid(weight_NK, bits, group_size)
    fitted = best_grid(weight_NK, bits, group_size, hessian_KK.diagonal().float().clamp_min(1e-20))
    q_NK, chosen = full.round(weight_NK), full
    least_N = output_error(weight_NK - full.values(q_NK), hessian_KK)
    for grid in (full, fitted):
        greedy_NK = round_in_order(weight_NK, hessian_KK, grid, act_order=act_order, damping=damping, block=block)
        error_N = output_error(weight_NK - grid.values(greedy_NK), hessian_KK)
        better_N = error_N < least_N
        q_NK, chosen = torch.where(better_N[:, None], greedy_NK, q_NK), grid.rows(better_N, chosen)
        least_N = torch.minimum(error_N, least_N)
    return q_NK, chosen


def round_in_order(
    weight_NK: Tensor, hessian_KK: Tensor, grid: Grid, *, act_order: bool, damping: float, block: int
) -> Tensor:
    """The greedy pass; uint8 [N, K] on the given grid."""
    columns = weight_NK.shape[1]
    hessian_KK = hessian_KK.double().clone()
    diagonal_K = hessian_KK.diagonal()
    idle_K = diagonal_K == 0
    diagonal_K[idle_K] = 1
    diagonal_K += damping * diagonal_K.mean()
    order_K = torch.argsort(diagonal_K, descending=True, stable=True) if act_order else torch.arange(columns)
    upper_KK = _inverse_factor(hessian_KK[order_K][:, order_K]).float()
    rest_NK = weight_NK[:, order_K].clone()
    scale_NK, zero_NK = (tensor[:, order_K] for tensor in grid.spread())
    q_NK = torch.empty_like(rest_NK)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        error_NB = torch.empty_like(rest_NK[:, start:stop])
        for j in range(start, stop):
            w_N, scale_N, zero_N = rest_NK[:, j], scale_NK[:, j], zero_NK[:, j]
            q_N = (torch.round(w_N / scale_N) + zero_N).clamp(0, 2**grid.bits - 1)
            q_NK[:, j] = q_N
            error_N = (w_N - (q_N - zero_N) * scale_N) / upper_KK[j, j]
            error_NB[:, j - start] = error_N
            rest_NK[:, j + 1 : stop] -= error_N[:, None] * upper_KK[j, j + 1 : stop]
        rest_NK[:, stop:] -= error_NB @ upper_KK[start:stop, stop:]
    result_NK = torch.empty_like(q_NK)
    result_NK[:, order_K] = q_NK
    return result_NK.to(torch.uint8)


def _inverse_factor(hessian_KK: Tensor) -> Tensor:
    """U upper triangular with `U' U` the inverse of the matrix; more damping where it is not positive definite."""
    extra = hessian_KK.diagonal().mean() * 1e-6
    while True:
        lower, failed = torch.linalg.cholesky_ex(hessian_KK)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        hessian_KK.diagonal().add_(extra)
        extra = extra * 10
