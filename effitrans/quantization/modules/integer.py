"""The modules that hold int8 weights, and how the manifest describes them."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.config import Dimension
from effitrans.quantization.modules.base import FixedTypes, QuantizedLinear
from effitrans.quantization.modules.kernels import fixed_grid, int8_embedding, int8_linear, quantize_channels
from effitrans.quantization.modules.linear import weight_of


class Int8Linear(QuantizedLinear):
    """A linear layer with int8 weights that quantizes its input and multiplies integers.

    `weight` is int8 [out_features, in_features], a parameter without a gradient, so that it counts as one and can be
    tied; `scale` float32 [out_features], one scale per row.
    Takes the place of `nn.Linear` and of GPT-2's `Conv1D` (whose weight it stores transposed, as `nn.Linear` does).
    Input and output are floating point, [..., in_features] -> [..., out_features]; there is no gradient. The input is
    quantized row by row; or with one fixed range, where one was calibrated (`static`). It may first be multiplied by
    a factor per feature, by whose inverse the weight was multiplied (`smooth`).

    >>> layer = Int8Linear.from_float(nn.Linear(8, 4))
    >>> layer(torch.zeros(2, 3, 8)).shape, layer.weight.dtype
    (torch.Size([2, 3, 4]), torch.int8)
    """

    kind: ClassVar[str] = "int8_linear"
    meant_compiled = True
    weight: nn.Parameter
    scale: Tensor
    weight_sum: Tensor
    factor: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None

    def __init__(
        self,
        in_features: Dimension,
        out_features: Dimension,
        bias: bool = True,
        smooth: bool = False,
        static: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(in_features, out_features)
        weight = torch.zeros(out_features, in_features, dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.float32))
        self.register_buffer("weight_sum", torch.zeros(out_features, dtype=torch.int32))
        self.register_buffer("factor", torch.ones(in_features) if smooth else None)
        self.register_buffer("input_scale", torch.ones(()) if static else None)
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.int32) if static else None)
        self._add_bias(bias, dtype)

    @classmethod
    @torch.no_grad()
    def from_float(
        cls,
        linear: nn.Linear | Conv1D,
        factor: Tensor | None = None,
        input_range: tuple[float, float] | None = None,
    ) -> Self:
        """Quantize an `nn.Linear` or `Conv1D`; its bias is kept as it is, and shared if it was shared.

        Args:
            linear: the layer.
            factor: float32 [in_features] above 0, multiplied into the input and taken out of the weight.
            input_range: least and largest input, after the factor, for one fixed grid. None: each row has its own.
        """
        weight_NK = weight_of(linear)
        q_NK, scale_N = quantize_channels(weight_NK if factor is None else weight_NK.float() / factor)
        grid = None if input_range is None else fixed_grid(*input_range)
        return cls.from_integers(q_NK, scale_N, linear.bias, factor=factor, grid=grid)

    @classmethod
    def from_integers(
        cls,
        q_NK: Tensor,
        scale_N: Tensor,
        bias_N: nn.Parameter | None,
        *,
        factor: Tensor | None = None,
        grid: tuple[Tensor, Tensor] | None = None,
    ) -> Self:
        """A layer of given integers (int8), scales (float32), bias, factor, and input scale and zero point."""
        with torch.device("meta"):
            built = cls(q_NK.shape[1], q_NK.shape[0], bias=False)
        built.weight, built.scale = nn.Parameter(q_NK.contiguous(), requires_grad=False), scale_N
        built.weight_sum = built.weight.sum(1, dtype=torch.int32)
        built.bias, built.factor = bias_N, factor
        if grid is not None:
            built.input_scale, built.input_zero_point = grid
        return built

    def spec(self) -> dict[str, Any]:
        options = {"smooth": self.factor is not None, "static": self.input_scale is not None}
        return {**super().spec(), **{name: True for name, used in options.items() if used}}

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of `x`.

        Raises:
            TypeError: `x` holds integers, as when code casts its input to the type of the weight.
        """
        self.refuse_integers(x)
        grid = None
        if self.input_scale is not None and self.input_zero_point is not None:
            grid = (self.input_scale, self.input_zero_point)
        return int8_linear(x, self.weight, self.scale, self.weight_sum, self.bias, factor_K=self.factor, grid=grid)


class Int8Embedding(FixedTypes):
    """An embedding table with int8 rows and one scale per row: ids [...] -> [..., embedding_dim]."""

    kind: ClassVar[str] = "int8_embedding"
    weight: nn.Parameter
    scale: Tensor
    like: nn.Parameter

    def __init__(
        self,
        num_embeddings: Dimension,
        embedding_dim: Dimension,
        padding_idx: Dimension | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        weight = torch.zeros(num_embeddings, embedding_dim, dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", torch.ones(num_embeddings, dtype=torch.float32))
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        # Holds a type and no number. As a parameter it follows the model when it is cast; as the first one it is what
        # libraries find that ask a model's first parameter, in most models that of a table, for the model's type.
        like = nn.Parameter(torch.empty(0, dtype=dtype, device="cpu"), requires_grad=False)
        self._parameters = {"like": like, **self._parameters}

    @classmethod
    @torch.no_grad()
    def from_float(cls, embedding: nn.Embedding) -> Self:
        """Quantize an `nn.Embedding`."""
        rows, columns = embedding.weight.shape
        with torch.device("meta"):
            built = cls(rows, columns, embedding.padding_idx, embedding.weight.dtype)
        q_VK, built.scale = quantize_channels(embedding.weight)
        built.weight = nn.Parameter(q_VK.contiguous(), requires_grad=False)
        built.settle()
        return built

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vectors it gives."""
        return self.like.dtype

    def settle(self) -> None:
        """Bring what no file holds to the device of the rest."""
        self.like.data = self.like.data.to(self.weight.device)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}like"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict({**state_dict, f"{prefix}like": self.like}, prefix, *args)

    def spec(self) -> dict[str, Any]:
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "padding_idx": self.padding_idx,
        }

    def forward(self, ids: Tensor) -> Tensor:
        return int8_embedding(ids, self.weight, self.scale, self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"
