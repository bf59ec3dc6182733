"""Integers of 2, 3, 4 or 8 bits stored at their true size, and the product with packed 4-bit weights.

A row is one stream of bits, lowest first, padded to a whole byte: 3-bit values take three bytes for eight. N output
features, K input features, G groups of K / G features each, P bytes per row.
"""

from functools import cache
from math import gcd

import torch
from torch import Tensor

INT4_GROUPS = (32, 64, 128, 256)
"""Group sizes that PyTorch's 4-bit CPU kernel takes."""
INT4_ROWS = 128
"""Rows of activations up to which that kernel is used. Milliseconds for a weight of 384 x 1536 on two threads, against
expanding it first: 0.03 and 3.8 for one row, 1.1 and 4.3 for 128, about level from 256 on. A dense bfloat16 product
takes 0.11, 0.44 and 0.73."""


def packed_bytes(columns: int, bits: int) -> int:
    """Bytes of a row of `columns` values.

    >>> packed_bytes(64, 3), packed_bytes(3, 3)
    (24, 2)
    """
    return -(-columns * bits // 8)


def pack(values_NK: Tensor, bits: int) -> Tensor:
    """Pack integers from 0 to `2**bits - 1`.

    Args:
        values_NK: any integer type.
        bits: 2, 3, 4 or 8.

    Returns:
        int8 [N, P]: bytes, of the type that models which look at the type of a weight know as quantized.

    >>> pack(torch.tensor([[1, 2, 3, 0]]), 2).tolist()
    [[57]]
    """
    rows, columns = values_NK.shape
    values, size = _block(bits)
    padded = torch.nn.functional.pad(values_NK.to(torch.int32), (0, -columns % values))
    shifts = bits * torch.arange(values, dtype=torch.int32, device=values_NK.device)
    words = (padded.view(rows, -1, values) << shifts).sum(-1, dtype=torch.int32)
    stream = (words[..., None] >> (8 * torch.arange(size, dtype=torch.int32, device=words.device))) & 255
    return stream.to(torch.uint8).view(rows, -1)[:, : packed_bytes(columns, bits)].contiguous().view(torch.int8)


def unpack(packed_NP: Tensor, bits: int, columns: int) -> Tensor:
    """The integers of `pack`: uint8 [N, K]."""
    packed_NP = packed_NP.view(torch.uint8)
    if bits == 8:
        return packed_NP
    values, size = _block(bits)
    padded = torch.nn.functional.pad(packed_NP, (0, -packed_NP.shape[1] % size))
    word, *rest = padded.view(padded.shape[0], -1, size).unbind(-1)
    if rest:
        word = word.to(torch.int32)
        for place, byte in enumerate(rest, 1):
            word = word | (byte.to(torch.int32) << 8 * place)
    parts = [((word >> bits * i) & (2**bits - 1)).to(torch.uint8) for i in range(values)]
    return torch.stack(parts, -1).flatten(1)[:, :columns]


def _block(bits: int) -> tuple[int, int]:
    """(values, bytes) of the shortest stream that ends at a byte."""
    return 8 // gcd(8, bits), bits // gcd(8, bits)


def prepare_int4(q_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor) -> tuple[Tensor, Tensor]:
    """The operands of `int4_product`: PyTorch's own layout of the weight, and scale and offset of each group.

    The kernel computes `scale (q - 8) + offset`.
    """
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q_NK.to(torch.int32).contiguous(), 1)
    scale_NG = scale_NG.float()
    offset_NG = (8 - zero_NG.float()) * scale_NG
    return weight, torch.stack([scale_NG.t(), offset_NG.t()], -1).bfloat16().contiguous()


def int4_product(x: Tensor, weight: Tensor, scale_and_offset: Tensor, group_size: int) -> Tensor:
    """`x @ w.T` for prepared 4-bit weights: bfloat16 [..., K] -> [..., N]."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, weight, group_size, scale_and_offset)
    return y.view(*x.shape[:-1], y.shape[-1])


@torch.compiler.assume_constant_result
def int4_kernel_fits(out_features: int, in_features: int, group_size: int, device_type: str) -> bool:
    """Whether PyTorch's 4-bit CPU kernel takes a layer of this shape and was seen to be right on this machine.

    It is fast for bfloat16 alone: in float32 it is a plain loop, 75 times slower than a dense MiniLM on 32 sentences.
    """
    fits = device_type == "cpu" and group_size in INT4_GROUPS and out_features % 16 == 0 and in_features % 2 == 0
    return fits and _int4_kernel_is_right()


@cache
def _int4_kernel_is_right() -> bool:
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (64, 64), generator=generator)
    scale, zero = torch.rand(64, 2, generator=generator), torch.randint(0, 16, (64, 2), generator=generator)
    x = torch.randn(5, 64, generator=generator).bfloat16()
    expected = x.float() @ ((q - zero.repeat_interleave(32, 1)) * scale.repeat_interleave(32, 1)).t()
    try:
        product = int4_product(x, *prepare_int4(q, scale, zero), 32)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((product - expected).norm() < 0.02 * expected.norm())
