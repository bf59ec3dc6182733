"""Schemes `nf4` and `fp4`: bitsandbytes' 4-bit formats, in a module that the manifest describes.

NF4 (QLoRA, Dettmers et al. 2023) and FP4: each weight is one of 16 values times the largest magnitude of its block of
neighbours, rows laid end to end. With double quantization those magnitudes are 8-bit floats themselves, in blocks of
256: 4.127 bits per weight rather than 4.5. Activations are floating point.

bitsandbytes rounds the weights. Its 4-bit kernel for CPUs takes blocks that end within a row for whole ones (0.50), so
the values are looked up here where rows are not made of whole blocks.

N output features, K input features, B blocks.
"""

from functools import cache
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.config import Dimension
from effitrans.quantization.modules.base import QuantizedLinear
from effitrans.quantization.modules.linear import weight_of
from effitrans.quantization.schemes.bits_and_bytes.base import BitsAndBytes

NESTED_BLOCK = 256
"""Magnitudes that share a scale under double quantization."""

NumberType = Literal["nf4", "fp4"]


class FourBit(BitsAndBytes):
    """Base of `nf4` and `fp4`: 4-bit weights in blocks, floating-point activations. Need no data."""

    number_type: ClassVar[NumberType]

    block_size: Literal[32, 64, 128, 256, 512, 1024] = 64
    """Neighbouring weights, row after row, that share a magnitude."""
    double_quantization: bool = True
    """Store the magnitudes in 8 bits too."""

    def build(self, linear: Any) -> nn.Module:
        return FourBitLinear.from_float(linear, self.number_type, self.block_size, self.double_quantization)


class NF4(FourBit):
    """Scheme `nf4`: 16 values with equal shares of a normal distribution."""

    name: ClassVar[str] = "nf4"
    number_type: ClassVar[NumberType] = "nf4"


class FP4(FourBit):
    """Scheme `fp4`: 4-bit floating point."""

    name: ClassVar[str] = "fp4"
    number_type: ClassVar[NumberType] = "fp4"


class FourBitLinear(QuantizedLinear):
    """A linear layer with weights in NF4 or FP4: [..., K] -> [..., N] in the type of the input.

    `weight` is int8 [ceil(N K / 2)], two weights per byte, the first in the high half. `absmax` holds the magnitude of
    each block: float32 [B]; or with `double_quantization` the 8-bit code [B], to be scaled by `nested_absmax` float32
    [ceil(B / 256)] and moved by `offset` float32.
    """

    kind: ClassVar[str] = "four_bit_linear"
    settings: ClassVar[tuple[str, ...]] = ("number_type", "block_size", "double_quantization")
    is_packed: ClassVar[bool] = True
    weight: nn.Parameter
    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        in_features: Dimension,
        out_features: Dimension,
        number_type: NumberType,
        block_size: PositiveInt,
        double_quantization: bool = True,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(in_features, out_features)
        self.number_type, self.block_size, self.double_quantization = number_type, block_size, double_quantization
        count = in_features * out_features
        blocks = -(-count // block_size)
        self.weight = nn.Parameter(torch.zeros(-(-count // 2), dtype=torch.int8), requires_grad=False)
        self.register_buffer("absmax", torch.zeros(blocks, dtype=torch.uint8 if double_quantization else torch.float32))
        self.register_buffer("nested_absmax", torch.zeros(-(-blocks // NESTED_BLOCK)) if double_quantization else None)
        self.register_buffer("offset", torch.zeros(()) if double_quantization else None)
        self._add_bias(bias, dtype)

    @classmethod
    @torch.no_grad()
    def from_float(
        cls, linear: nn.Linear | Conv1D, number_type: NumberType, block_size: int, double_quantization: bool
    ) -> Self:
        """Round the weight of an `nn.Linear` or `Conv1D`; the bias is kept as it is."""
        from bitsandbytes import functional

        weight_NK = weight_of(linear).detach().float().contiguous()
        packed, state = functional.quantize_4bit(
            weight_NK, blocksize=block_size, compress_statistics=double_quantization, quant_type=number_type
        )
        rows, columns = weight_NK.shape
        with torch.device("meta"):
            built = cls(columns, rows, number_type, block_size, double_quantization, bias=False)
        built.weight = nn.Parameter(packed.flatten().view(torch.int8), requires_grad=False)
        built.absmax, built.bias = state.absmax, linear.bias
        if double_quantization:
            assert state.state2 is not None
            built.nested_absmax, built.offset = state.state2.absmax, state.offset
        return built

    def magnitudes(self) -> Tensor:
        """The largest magnitude of each block: float32 [B]."""
        if self.nested_absmax is None or self.offset is None:
            return self.absmax
        scale_B = self.nested_absmax.repeat_interleave(NESTED_BLOCK)[: self.absmax.numel()]
        return _nested_code(self.absmax.device)[self.absmax.long()] * scale_B + self.offset

    def looked_up(self) -> Tensor:
        """The weight, value by value: float32 [N, K]. What the kernels of bitsandbytes are tested against."""
        bytes_ = self.weight.detach().view(torch.uint8).long()
        code = _code(self.number_type, self.weight.device)
        values = code[torch.stack([bytes_ >> 4, bytes_ & 15], 1).flatten()]
        count = self.in_features * self.out_features
        scale = self.magnitudes().repeat_interleave(self.block_size)[:count]
        return (values[:count] * scale).view(self.out_features, self.in_features)

    def dequantized(self) -> Tensor:
        """The weight: float32 [N, K]."""
        if self.in_features % self.block_size and self.weight.device.type == "cpu":
            return self.looked_up()
        from bitsandbytes import functional

        state = functional.QuantState(
            absmax=self.magnitudes(),
            shape=torch.Size((self.out_features, self.in_features)),
            code=_code(self.number_type, self.weight.device),
            blocksize=self.block_size,
            quant_type=self.number_type,
            dtype=torch.float32,
        )
        return functional.dequantize_4bit(self.weight.detach().view(torch.uint8)[:, None], state)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of `x`."""
        self.refuse_integers(x)
        return nn.functional.linear(x, self.dequantized().to(x.dtype), self.bias)


@cache
def _code(number_type: str, device: torch.device) -> Tensor:
    """The 16 values of a 4-bit type."""
    from bitsandbytes import functional

    return functional.get_4bit_type(number_type, device=device)


@cache
def _nested_code(device: torch.device) -> Tensor:
    """The 256 values of the 8-bit type of magnitudes."""
    from bitsandbytes import functional

    return functional.create_dynamic_map().to(device)
