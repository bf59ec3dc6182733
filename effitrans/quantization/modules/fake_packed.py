"""Fake quantization of weights to few bits in groups: trains in floating point what `PackedLinear` will compute.

The step of each group is learned (LSQ, Esser et al. 2020, see `fake.py`) from the one of least squared error; in the
forward pass it is rounded to bfloat16, the type it will be stored in, and the weights to integers. Zero points are
fixed.

N output features, K input features, G groups.
"""

from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.config import Dimension
from effitrans.quantization.modules.base import FixedTypes
from effitrans.quantization.modules.fake import learned_grid, straight_through
from effitrans.quantization.modules.grid import Grid, best_grid
from effitrans.quantization.modules.linear import parameter_of
from effitrans.quantization.modules.packed import PackedLinear

_SMALLEST_STEP = 1e-12


class FakePackedLinear(FixedTypes):
    """A linear layer that trains as if it were a `PackedLinear`: [..., K] -> [..., N].

    `weight` is [N, K], also where it replaces a `Conv1D`; `step` float32 [N, G], a parameter; `zero_point` float32
    [N, G], integer valued.
    """

    kind: ClassVar[str] = "fake_packed_linear"
    trainable: ClassVar[bool] = True
    weight: nn.Parameter
    zero_point: Tensor

    def __init__(
        self,
        in_features: Dimension,
        out_features: Dimension,
        bits: Annotated[int, Field(ge=1, le=8)],
        group_size: PositiveInt,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.group_size = bits, group_size
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None
        self.step = nn.Parameter(torch.ones(out_features, in_features // group_size))
        self.register_buffer("zero_point", torch.zeros(out_features, in_features // group_size))

    @classmethod
    def from_float(cls, linear: nn.Linear | Conv1D, bits: int, group_size: int | None) -> Self:
        """Take over the parameters of a linear layer; those of an `nn.Linear` stay the same objects."""
        weight = parameter_of(linear)
        rows, columns = weight.shape
        with torch.device("meta"):
            built = cls(columns, rows, bits, group_size or columns, bias=False)
        built.weight, built.bias = weight, linear.bias
        start = best_grid(weight.detach(), bits, built.group_size, torch.ones(columns, device=weight.device))
        built.step = nn.Parameter(start.scale_NG.float())
        built.zero_point = start.zero_NG.float()
        return built

    def spec(self) -> dict[str, Any]:
        names = ("in_features", "out_features", "bits", "group_size")
        return {**{name: getattr(self, name) for name in names}, "bias": self.bias is not None}

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of `x`."""
        step_NG = self.step.float().abs().clamp_min(_SMALLEST_STEP)
        step_NG = straight_through(step_NG.to(torch.bfloat16).float(), step_NG)
        grouped = self.weight.float().view(self.out_features, -1, self.group_size)
        rounded = learned_grid(grouped, step_NG[..., None], self.zero_point[..., None], 0, 2**self.bits - 1)
        return nn.functional.linear(x, rounded.view_as(self.weight).to(x.dtype), self.bias)

    @torch.no_grad()
    def to_integers(self) -> PackedLinear:
        """The layer that stores what this one computes with."""
        scale_NG = self.step.float().abs().clamp_min(_SMALLEST_STEP).to(torch.bfloat16)
        grouped = self.weight.float().view(self.out_features, -1, self.group_size)
        inside = (grouped / scale_NG.float()[..., None] + self.zero_point[..., None]).clamp(0, 2**self.bits - 1)
        q_NK = torch.round(inside).to(torch.uint8).view(self.out_features, self.in_features)
        grid = Grid(self.bits, self.group_size, scale_NG, self.zero_point.to(torch.uint8))
        bias = None if self.bias is None else nn.Parameter(self.bias.detach(), requires_grad=False)
        return PackedLinear.from_integers(q_NK, grid, bias)
