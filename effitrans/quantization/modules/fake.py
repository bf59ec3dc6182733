"""Fake quantization: modules that train in floating point and compute what their int8 twins will compute.

Rounding passes gradients straight through (Bengio et al. 2013). With learned steps (LSQ, Esser et al. 2020) the step of
a grid is a parameter; for values inside the grid its gradient is `round(v) - v`, outside it is the end of the grid,
scaled by `1 / sqrt(values * largest integer)`; that is what the expressions below give when they are differentiated.

N output features, K input features.
"""

from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.config import Dimension
from effitrans.quantization.modules.base import FixedTypes
from effitrans.quantization.modules.integer import Int8Embedding, Int8Linear
from effitrans.quantization.modules.kernels import quantize_rows
from effitrans.quantization.modules.linear import parameter_of

_SMALLEST_STEP = 1e-12


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of `x`."""
    return rounded.detach() + (x - x.detach())


def learned_grid(x: Tensor, step: Tensor, zero_point: Tensor | float, low: int, high: int) -> Tensor:
    """Round `x` to the grid `step (q - zero_point)`, q in low..high, with LSQ's gradient for `step`.

    Args:
        x: floating point.
        step: broadcasts against `x`; its magnitude is used.
        zero_point: integer valued.
        low, high: ends of the integers.
    """
    step = step.abs().clamp_min(_SMALLEST_STEP)
    share = (step.numel() / max(x.numel() * high, 1)) ** 0.5
    step = straight_through(step, share * step)
    inside = (x / step + zero_point).clamp(low, high)
    return (straight_through(torch.round(inside), inside) - zero_point) * step


def largest_step(weight_NK: Tensor) -> Tensor:
    """The step [N, 1] with which the largest weight of a row is 127."""
    return (weight_NK.detach().float().abs().amax(-1, keepdim=True) / 127).clamp_min(_SMALLEST_STEP)


class FakeQuantLinear(FixedTypes):
    """A linear layer that trains as if it were an `Int8Linear`.

    `weight` is [out_features, in_features], also where it replaces a `Conv1D`. With `learned` there is a parameter
    `step` [out_features, 1], else the step follows the largest weight of each row. With `static` the input has one
    grid with a learned step and a fixed zero point, else each row has its own.

    >>> layer = FakeQuantLinear.from_float(nn.Linear(8, 4), learned=True)
    >>> layer(torch.ones(2, 8)).sum().backward()
    >>> layer.step.grad.shape
    torch.Size([4, 1])
    """

    kind: ClassVar[str] = "fake_quant_linear"
    trainable: ClassVar[bool] = True
    weight: nn.Parameter
    input_zero_point: Tensor | None

    def __init__(
        self,
        in_features: Dimension,
        out_features: Dimension,
        bias: bool = True,
        learned: bool = False,
        static: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None
        self.step = nn.Parameter(torch.ones(out_features, 1)) if learned else None
        self.input_step = nn.Parameter(torch.ones(())) if static else None
        self.register_buffer("input_zero_point", torch.zeros(()) if static else None)

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear | Conv1D,
        *,
        learned: bool = False,
        input_grid: tuple[Tensor, Tensor] | None = None,
    ) -> Self:
        """Take over the parameters of a linear layer; those of an `nn.Linear` stay the same objects.

        Args:
            linear: the layer.
            learned: learn the steps of the weight.
            input_grid: scale and zero point of the input. None: each row has its own.
        """
        weight = parameter_of(linear)
        with torch.device("meta"):
            built = cls(weight.shape[1], weight.shape[0], bias=False)
        built.weight, built.bias = weight, linear.bias
        if learned:
            built.step = nn.Parameter(largest_step(weight))
        if input_grid is not None:
            built.input_step = nn.Parameter(input_grid[0].clone())
            built.input_zero_point = input_grid[1].float()
        return built

    def spec(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "learned": self.step is not None,
            "static": self.input_step is not None,
        }

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of `x`."""
        if self.input_step is None or self.input_zero_point is None:
            q, scale, zero_point = quantize_rows(x.detach())
            rounded = straight_through((scale * (q.float() - zero_point)).to(x.dtype), x)
        else:
            rounded = learned_grid(x.float(), self.input_step, self.input_zero_point, -128, 127).to(x.dtype)
        step = largest_step(self.weight) if self.step is None else self.step
        weight = learned_grid(self.weight.float(), step, 0.0, -127, 127).to(x.dtype)
        return nn.functional.linear(rounded, weight, self.bias)

    @torch.no_grad()
    def to_integers(self) -> Int8Linear:
        """The layer that computes with integers what this one computes."""
        step = (largest_step(self.weight) if self.step is None else self.step.float().abs()).clamp_min(_SMALLEST_STEP)
        q_NK = torch.round(self.weight.float() / step).clamp(-127, 127).to(torch.int8)
        bias = None if self.bias is None else nn.Parameter(self.bias.detach(), requires_grad=False)
        grid = None
        if self.input_step is not None and self.input_zero_point is not None:
            input_step = self.input_step.detach().float().abs().clamp_min(_SMALLEST_STEP)
            grid = (input_step, self.input_zero_point.to(torch.int32))
        return Int8Linear.from_integers(q_NK, step.flatten(), bias, grid=grid)


class FakeQuantEmbedding(FixedTypes):
    """An embedding table that trains as if it were an `Int8Embedding`."""

    kind: ClassVar[str] = "fake_quant_embedding"
    trainable: ClassVar[bool] = True
    weight: nn.Parameter

    def __init__(
        self,
        num_embeddings: Dimension,
        embedding_dim: Dimension,
        padding_idx: Dimension | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.weight = nn.Parameter(torch.zeros(num_embeddings, embedding_dim, dtype=dtype))

    @classmethod
    def from_float(cls, embedding: nn.Embedding) -> Self:
        """Take over the table of an embedding, the same object."""
        with torch.device("meta"):
            built = cls(*embedding.weight.shape, padding_idx=embedding.padding_idx)
        built.weight = cast(nn.Parameter, embedding.weight)
        return built

    def spec(self) -> dict[str, Any]:
        names = ("num_embeddings", "embedding_dim", "padding_idx")
        return {name: getattr(self, name) for name in names}

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., embedding_dim]; only the rows that are looked up are rounded."""
        rows = nn.functional.embedding(ids, self.weight, self.padding_idx)
        return learned_grid(rows.float(), largest_step(rows), 0.0, -127, 127).to(rows.dtype)

    @torch.no_grad()
    def to_integers(self) -> Int8Embedding:
        """The table in int8."""
        table = nn.Embedding.from_pretrained(self.weight.detach(), padding_idx=self.padding_idx)
        return Int8Embedding.from_float(table)
