"""The arithmetic of int8 layers: quantize rows, multiply integers, scale back.

An activation row is `x = s (q - z)` with int8 q and an integer zero point z; a weight row is `w = t p`. Then

    x . w = s t (q . p - z sum(p))

exactly, so an asymmetric activation costs one multiply-add an output beside the integer product. After GELU or a
layer norm rows are far from symmetric, and the zero point saves most of a bit: on MiniLM the relative error of the
last hidden state falls from 0.078 to 0.053. Rows are quantized as they come (LLM.int8, Dettmers et al. 2022, and
ZeroQuant, Yao et al. 2022, do the same symmetrically), so no calibration is needed and batch-mates do not matter.

Everything here is written so that `torch.compile` fuses the quantization with what comes before it and the scaling
with what follows. Plain twins are in `reference.py`. M rows (tokens), K input features, N output features.
"""

from functools import cache

import torch
from torch import Tensor

MAX_IN_FEATURES = (2**31 - 1) // (255 * 127)
"""Input features up to which `q . p - z sum(p)` fits int32 whatever the values: 66,312."""

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize the last dimension of activations, one scale and zero point a row.

    Args:
        x: floating point [..., K].

    Returns:
        q int8 [..., K], scale float32 [..., 1], zero_point int32 [..., 1], with `x ~ scale * (q - zero_point)`.
        Zeros are represented exactly; an infinite or NaN entry makes its row's scale NaN or infinite.

    >>> q, scale, zero_point = quantize_rows(torch.tensor([[0.0, 1.0, 2.55]]))
    >>> q.tolist(), zero_point.tolist()
    ([[-128, -28, 127]], [[-128]])
    """
    x = x.float()
    low = x.amin(-1, keepdim=True).clamp_max(0)
    high = x.amax(-1, keepdim=True).clamp_min(0)
    scale = (high / 255 - low / 255).clamp_min(_SMALLEST_SCALE)
    inverse = 1 / scale
    zero_point = -128 - torch.round(low * inverse)
    q = torch.round(x * inverse + zero_point).clamp(-128, 127).to(torch.int8)
    return q, scale, zero_point.to(torch.int32)


def fixed_grid(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32), both scalars, of the int8 grid from `low` to `high`, 0 included."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = torch.tensor(high / 255 - low / 255, dtype=torch.float32).clamp_min(_SMALLEST_SCALE)
    return scale, (-128 - torch.round(low / scale)).to(torch.int32)


def quantize_on(x: Tensor, grid: tuple[Tensor, Tensor]) -> Tensor:
    """Quantize activations of any shape on a fixed grid (scale, zero point); what lies outside is clipped. int8."""
    scale, zero_point = grid
    return torch.round(x.float() * (1 / scale) + zero_point).clamp(-128, 127).to(torch.int8)


def quantize_channels(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight or an embedding table symmetrically, one scale per row.

    Returns:
        q int8 [N, K] in -127..127, scale float32 [N], with `weight ~ scale[:, None] * q`.
    """
    weight_NK = weight_NK.float()
    scale_N = (weight_NK.abs().amax(1) / 127).clamp_min(_SMALLEST_SCALE)
    return torch.round(weight_NK / scale_N[:, None]).clamp(-127, 127).to(torch.int8), scale_N


def integer_product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """`a @ b.T` of int8 matrices; int32 [M, N], exact.

    Runs on `torch._int_mm` where that was seen to be exact on this machine, else through float64, which holds every
    partial sum exactly and is slower. The CPU kernel of torch 2.13 leaves its output uninitialised where there is a
    single input feature, and for a single row whose stride, which means nothing, is not K. CUDA's kernel wants more
    than 16 rows and multiples of 8 elsewhere: smaller operands are padded with zeros, which change nothing.
    """
    if a_MK.shape[1] == 1:
        return a_MK.to(torch.int32) * b_NK.t()
    if not fast_product_is_exact(a_MK.device.type):
        return (a_MK.double() @ b_NK.double().t()).to(torch.int32)
    if a_MK.device.type != "cuda":
        a_MK = a_MK.contiguous()
        if a_MK.shape[0] == 1:
            a_MK = a_MK.as_strided(a_MK.shape, (a_MK.shape[1], 1))
        return torch._int_mm(a_MK, b_NK.t())
    (rows, inner), columns = a_MK.shape, b_NK.shape[0]
    extra_rows, extra_inner, extra_columns = max(0, 17 - rows), -inner % 8, -columns % 8
    a_MK = torch.nn.functional.pad(a_MK, (0, extra_inner, 0, extra_rows))
    b_NK = torch.nn.functional.pad(b_NK, (0, extra_inner, 0, extra_columns))
    return torch._int_mm(a_MK, b_NK.t())[:rows, :columns]


@torch.compiler.assume_constant_result
def fast_product_is_exact(device_type: str) -> bool:
    """Whether `torch._int_mm` multiplies extreme values exactly on this kind of device.

    CPUs without VNNI add pairs of 8-bit products in saturating 16-bit arithmetic in some libraries.
    """
    return _multiplies_exactly(device_type)


@cache
def _multiplies_exactly(device_type: str) -> bool:
    a_MK = torch.full((33, 64), -128, dtype=torch.int8, device=device_type)
    b_NK = torch.full((24, 64), -127, dtype=torch.int8, device=device_type)
    a_MK[:, ::3], b_NK[:, 1::3] = 127, 127
    try:
        product = torch._int_mm(a_MK, b_NK.t())
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(product, (a_MK.double() @ b_NK.double().t()).to(torch.int32))


def int8_linear(
    x: Tensor,
    weight_NK: Tensor,
    scale_N: Tensor,
    weight_sum_N: Tensor,
    bias_N: Tensor | None = None,
    *,
    factor_K: Tensor | None = None,
    grid: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """A linear layer on int8 weights.

    Args:
        x: floating point [..., K].
        weight_NK: int8.
        scale_N: float32, of the weight's rows.
        weight_sum_N: int32, the sums of the weight's rows.
        bias_N: floating point, or None.
        factor_K: float32, multiplied into `x` first, or None.
        grid: scale and zero point for all of `x`. None: each row has its own.

    Returns:
        [..., N] in the type of `x`; arithmetic around the integer product is float32. A row with an infinite or NaN
        entry gives NaN.
    """
    scaled = x if factor_K is None else x.float() * factor_K
    if grid is None:
        q, x_scale, zero_point = quantize_rows(scaled)
    else:
        # No integer stands for NaN, so it travels in the scale: 0 is added to that of a row of finite numbers.
        q, zero_point = quantize_on(scaled, grid), grid[1]
        x_scale = grid[0] + (scaled.float() * 0).sum(-1, keepdim=True)
    product = integer_product(q.reshape(-1, q.shape[-1]), weight_NK).view(*x.shape[:-1], weight_NK.shape[0])
    y = (product - zero_point * weight_sum_N).float() * x_scale * scale_N
    return (y if bias_N is None else y + bias_N).to(x.dtype)


def int8_embedding(ids: Tensor, weight_VK: Tensor, scale_V: Tensor, dtype: torch.dtype) -> Tensor:
    """Look up rows of an int8 table: [...] ids -> [..., K] in `dtype`."""
    rows = torch.nn.functional.embedding(ids, weight_VK)
    return (rows.float() * torch.nn.functional.embedding(ids, scale_V[:, None])).to(dtype)
