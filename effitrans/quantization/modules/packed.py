"""The module that holds weights of 2, 3, 4 or 8 bits in groups, packed, and how the manifest describes it."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from effitrans.config import Dimension
from effitrans.quantization.modules.base import QuantizedLinear
from effitrans.quantization.modules.grid import Grid
from effitrans.quantization.modules.packing import (
    INT4_ROWS,
    int4_kernel_fits,
    int4_product,
    pack,
    packed_bytes,
    prepare_int4,
    unpack,
)


class PackedLinear(QuantizedLinear):
    """A linear layer with weights of few bits; activations and arithmetic are floating point.

    `weight` is int8 [out_features, bytes per row], a stream of bits; `scale` bfloat16 [out_features, groups];
    `zero_point` int8 [out_features, bytes], packed like the weight. With 4 bits, on a CPU, for few rows of bfloat16,
    and a shape that PyTorch's packed kernel takes, that kernel multiplies them, from a copy of the weight in its own
    layout that is made at the first call and not stored; else the weight is expanded to the type of the input for
    each product.

    >>> layer = PackedLinear(64, 32, bits=3, group_size=32)
    >>> layer.weight.shape, layer(torch.zeros(2, 64)).shape
    (torch.Size([32, 24]), torch.Size([2, 32]))
    """

    kind: ClassVar[str] = "packed_linear"
    is_packed: ClassVar[bool] = True
    settings: ClassVar[tuple[str, ...]] = ("bits", "group_size")
    weight: nn.Parameter
    scale: Tensor
    zero_point: Tensor
    factor: Tensor | None

    def __init__(
        self,
        in_features: Dimension,
        out_features: Dimension,
        bits: Annotated[int, Field(ge=1, le=8)],
        group_size: PositiveInt,
        bias: bool = True,
        scaled: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(in_features, out_features)
        self.bits, self.group_size = bits, group_size
        groups = in_features // group_size
        weight = torch.zeros(out_features, packed_bytes(in_features, bits), dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", torch.ones(out_features, groups, dtype=torch.bfloat16))
        zero_point = torch.zeros(out_features, packed_bytes(groups, bits), dtype=torch.int8)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("factor", torch.ones(in_features) if scaled else None)
        self._add_bias(bias, dtype)
        self._prepared: tuple[Tensor, Tensor] | None = None

    @classmethod
    @torch.no_grad()
    def from_integers(cls, q_NK: Tensor, grid: Grid, bias_N: nn.Parameter | None, factor: Tensor | None = None) -> Self:
        """Pack the integers of a weight.

        Args:
            q_NK: uint8, on the grid.
            grid: scales and zero points.
            bias_N: kept as it is.
            factor: float32 [K], multiplied into the input; its inverse is in the weight already.
        """
        rows, columns = q_NK.shape
        with torch.device("meta"):
            built = cls(columns, rows, grid.bits, grid.group_size, bias=False)
        built.weight = nn.Parameter(pack(q_NK, grid.bits), requires_grad=False)
        built.scale, built.zero_point = grid.scale_NG, pack(grid.zero_NG, grid.bits)
        built.factor, built.bias = factor, bias_N
        return built

    def spec(self) -> dict[str, Any]:
        return super().spec() if self.factor is None else {**super().spec(), "scaled": True}

    def integers(self) -> tuple[Tensor, Grid]:
        """The integers uint8 [out_features, in_features] and their grid."""
        zero_NG = unpack(self.zero_point, self.bits, self.scale.shape[1])
        grid = Grid(self.bits, self.group_size, self.scale, zero_NG)
        return unpack(self.weight, self.bits, self.in_features), grid

    def dequantized(self) -> Tensor:
        """The weight that the integers stand for, as the input meets it: float32 [out_features, in_features]."""
        q_NK, grid = self.integers()
        return grid.values(q_NK)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of `x`.

        Raises:
            TypeError: `x` holds integers, as when code casts its input to the type of the weight.
        """
        self.refuse_integers(x)
        if self.factor is not None:
            x = (x * self.factor).to(x.dtype)
        if not self._takes_int4(x):
            return nn.functional.linear(x, self.dequantized().to(x.dtype), self.bias)
        if self._prepared is None:
            q_NK, grid = self.integers()
            self._prepared = prepare_int4(q_NK, grid.scale_NG, grid.zero_NG)
        y = int4_product(x, *self._prepared, self.group_size)
        return y if self.bias is None else y + self.bias

    def _takes_int4(self, x: Tensor) -> bool:
        few = x.dtype == torch.bfloat16 and x.numel() <= INT4_ROWS * self.in_features
        shape = self.out_features, self.in_features, self.group_size
        return self.bits == 4 and few and int4_kernel_fits(*shape, self.weight.device.type)

    def settle(self) -> None:
        """Have the scale in its type again, where the architecture loads all of a module in float32 (T5)."""
        self.scale = self.scale.bfloat16()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._prepared = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._prepared = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}
