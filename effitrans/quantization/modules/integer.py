"""The modules that hold int8 weights, and how the manifest describes them."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.config import Dimension
from effitrans.quantization.modules.kernels import (
    fixed_grid,
    int8_embedding,
    int8_linear,
    quantize_channels,
)
from effitrans.quantization.modules.linear import weight_of


class FixedTypes(nn.Module):
    """A module whose tensors keep their types when the model is cast, or loaded in another type than it was saved in.

    They move between devices like any other. Only the bias, and the weight where it is floating point, are cast.
    """

    trainable: ClassVar[bool] = False
    """Integer weights have no gradient; `Trainer` and the passes that train ask for this."""
    meant_compiled: ClassVar[bool] = False
    """Whether a model that holds it is meant to run under `effitrans.optimize`, as evaluation then times it."""

    is_packed: ClassVar[bool] = False
    """Whether its weight is stored several values to a byte, which `dequantized()` tells apart."""

    @classmethod
    def from_spec(cls, spec: dict[str, Any], original: nn.Module | None) -> Self:
        """An empty module in the place of `original`, whose type its output has.

        `from_pretrained` builds a model with the type it was asked for as torch's default, and loads every tensor in
        the type that it then finds: without regard to the default, what is declared without a type is float32.
        """
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return cls(**spec, dtype=floating_dtype(original))
        finally:
            torch.set_default_dtype(default)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: tensor.data for name, tensor in self._fixed()}
        super()._apply(fn, recurse)
        for name, moved in self._fixed():
            if moved.dtype != before[name].dtype:
                moved.data = before[name].to(moved.device)
        return self

    def _fixed(self) -> list[tuple[str, Tensor]]:
        tensors = {**self._parameters, **self._buffers}
        return [(n, t) for n, t in tensors.items() if t is not None and n not in ("weight", "bias", "like")]


class _Int8Module(FixedTypes):
    """What both modules share: `weight` int8 [rows, columns] and `scale` float32 [rows], one for each row.

    The weight is a parameter without a gradient, so that it counts as one and can be tied; the scale is a buffer.
    """

    weight: nn.Parameter
    scale: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.ones(rows, dtype=torch.float32))

    def _store(self, weight: Tensor, scale: Tensor) -> None:
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.scale = scale


class Int8Linear(_Int8Module):
    """A linear layer with int8 weights that quantizes its input and multiplies integers.

    Takes the place of `nn.Linear` and of GPT-2's `Conv1D` (whose weight it stores transposed, as `nn.Linear` does).
    Input and output are floating point, [..., in_features] -> [..., out_features]; there is no gradient. The input is
    quantized row by row; or with one fixed range, where one was calibrated (`static`). It may first be multiplied by
    a factor for each feature, by whose inverse the weight was multiplied (`smooth`).

    >>> layer = Int8Linear.from_float(nn.Linear(8, 4))
    >>> layer(torch.zeros(2, 3, 8)).shape, layer.weight.dtype
    (torch.Size([2, 3, 4]), torch.int8)
    """

    kind: ClassVar[str] = "int8_linear"
    meant_compiled = True
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
        super().__init__(out_features, in_features)
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("weight_sum", torch.zeros(out_features, dtype=torch.int32))
        self.register_buffer("factor", torch.ones(in_features) if smooth else None)
        self.register_buffer("input_scale", torch.ones(()) if static else None)
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.int32) if static else None)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype), requires_grad=False) if bias else None

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
        built._store(q_NK, scale_N)
        built.weight_sum = built.weight.sum(1, dtype=torch.int32)
        built.bias, built.factor = bias_N, factor
        if grid is not None:
            built.input_scale, built.input_zero_point = grid
        return built

    def spec(self) -> dict[str, Any]:
        options = {"smooth": self.factor is not None, "static": self.input_scale is not None}
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            **{name: True for name, used in options.items() if used},
        }

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of `x`.

        Raises:
            TypeError: `x` holds integers, as when code casts its input to the type of the weight.
        """
        if not x.is_floating_point():
            raise TypeError(f"Int8Linear quantizes its input itself and takes floating point, received {x.dtype}")
        grid = None
        if self.input_scale is not None and self.input_zero_point is not None:
            grid = (self.input_scale, self.input_zero_point)
        return int8_linear(x, self.weight, self.scale, self.weight_sum, self.bias, factor_K=self.factor, grid=grid)

    def extra_repr(self) -> str:
        options = "".join(f", {name}=True" for name in ("smooth", "static") if self.spec().get(name))
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{options}"
        )


class Int8Embedding(_Int8Module):
    """An embedding table with int8 rows and one scale for each row: ids [...] -> [..., embedding_dim]."""

    kind: ClassVar[str] = "int8_embedding"
    like: nn.Parameter

    def __init__(
        self,
        num_embeddings: Dimension,
        embedding_dim: Dimension,
        padding_idx: Dimension | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
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
        built._store(*quantize_channels(embedding.weight))
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


def floating_dtype(original: nn.Module | None) -> torch.dtype:
    """The floating-point type of the module that is replaced: the one that `from_pretrained(dtype=...)` asked for."""
    tensors = [] if original is None else original.parameters(recurse=False)
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
