"""Plain twins of the kernels, written for reading: loops over rows, integers as integers, no fused arithmetic.

M rows (tokens), K input features, N output features.
"""

import torch
from torch import Tensor

LOWEST, HIGHEST = -128, 127


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric int8 for each row: `x ~ scale * (q - zero_point)`, with 0 exactly representable.

    Returns:
        q int8 [M, K], scale float32 [M, 1], zero_point int32 [M, 1].
    """
    q_MK = torch.empty(x_MK.shape, dtype=torch.int8)
    scale_M1 = torch.empty(len(x_MK), 1)
    zero_point_M1 = torch.empty(len(x_MK), 1, dtype=torch.int32)
    zero = torch.zeros(1)
    for row, x_K in enumerate(x_MK.float()):
        low, high = torch.cat([x_K, zero]).min(), torch.cat([x_K, zero]).max()
        scale = max(high / 255 - low / 255, torch.tensor(torch.finfo(torch.float32).tiny))
        zero_point = LOWEST - torch.round(low * (1 / scale))
        q_MK[row] = torch.round(x_K * (1 / scale) + zero_point).clamp(LOWEST, HIGHEST).to(torch.int8)
        scale_M1[row], zero_point_M1[row] = scale, zero_point.to(torch.int32)
    return q_MK, scale_M1, zero_point_M1


def quantize_channels(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 for each row of a weight or an embedding table: `weight ~ scale * q`, q in -127..127.

    Returns:
        q int8 [N, K], scale float32 [N].
    """
    q_NK = torch.empty(weight_NK.shape, dtype=torch.int8)
    scale_N = torch.empty(len(weight_NK))
    for row, w_K in enumerate(weight_NK.float()):
        scale = max(w_K.abs().max() / 127, torch.tensor(torch.finfo(torch.float32).tiny))
        q_NK[row] = torch.round(w_K / scale).clamp(-127, 127).to(torch.int8)
        scale_N[row] = scale
    return q_NK, scale_N


def integer_product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """`a @ b.T` of int8 matrices in exact integer arithmetic; int64 [M, N]."""
    return (a_MK.long()[:, None, :] * b_NK.long()[None, :, :]).sum(-1)


def int8_linear(x_MK: Tensor, weight_NK: Tensor, scale_N: Tensor, bias_N: Tensor | None) -> Tensor:
    """The int8 linear layer: quantize the rows, multiply integers, scale back, add the bias. float32 [M, N]."""
    q_MK, x_scale_M1, zero_point_M1 = quantize_rows(x_MK)
    centred_MK = q_MK.long() - zero_point_M1.long()
    product_MN = (centred_MK[:, None, :] * weight_NK.long()[None, :, :]).sum(-1)
    y_MN = product_MN.double() * x_scale_M1.double() * scale_N.double()
    return (y_MN if bias_N is None else y_MN + bias_N.double()).float()
