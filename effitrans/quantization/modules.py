"""The modules that hold int8 weights, and how the manifest describes them."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.quantization.kernels import int8_embedding, int8_linear, quantize_channels


class _Int8Module(nn.Module):
    """What both modules share: `weight` int8 [rows, columns] and `scale` float32 [rows], one for each row.

    The weight is a parameter without a gradient, so that it counts as one and can be tied; the scale is a buffer.
    """

    trainable: ClassVar[bool] = False
    """Integer weights have no gradient; `Trainer` and the passes that train ask for this."""

    weight: nn.Parameter
    scale: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.ones(rows, dtype=torch.float32))

    def _store(self, weight: Tensor, scale: Tensor) -> None:
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.scale = scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move between devices like any module, but keep the scale in float32 when the model is cast."""
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:
            self.scale = scale.to(self.scale.device)
        return self


class Int8Linear(_Int8Module):
    """A linear layer with int8 weights that quantizes its input row by row and multiplies integers.

    Takes the place of `nn.Linear` and of GPT-2's `Conv1D` (whose weight it stores transposed, as `nn.Linear` does).
    Input and output are floating point, [..., in_features] -> [..., out_features]; there is no gradient.

    >>> layer = Int8Linear.from_float(nn.Linear(8, 4))
    >>> layer(torch.zeros(2, 3, 8)).shape, layer.weight.dtype
    (torch.Size([2, 3, 4]), torch.int8)
    """

    kind: ClassVar[str] = "int8_linear"
    weight_sum: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(out_features, in_features)
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("weight_sum", torch.zeros(out_features, dtype=torch.int32))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype), requires_grad=False) if bias else None

    @classmethod
    @torch.no_grad()
    def from_float(cls, linear: nn.Linear | Conv1D) -> Self:
        """Quantize an `nn.Linear` or `Conv1D`; its bias is kept as it is, and shared if it was shared."""
        weight_NK = linear.weight.t() if isinstance(linear, Conv1D) else linear.weight
        with torch.device("meta"):
            built = cls(weight_NK.shape[1], weight_NK.shape[0], bias=False)
        built._store(*quantize_channels(weight_NK))
        built.weight_sum = built.weight.sum(1, dtype=torch.int32)
        built.bias = linear.bias
        return built

    def spec(self) -> dict[str, Any]:
        return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias is not None}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], original: nn.Module | None) -> Self:
        return cls(**spec, dtype=_floating_dtype(original))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of `x`.

        Raises:
            TypeError: `x` holds integers, as when code casts its input to the type of the weight.
        """
        if not x.is_floating_point():
            raise TypeError(f"Int8Linear quantizes its input itself and takes floating point, received {x.dtype}")
        return int8_linear(x, self.weight, self.scale, self.weight_sum, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(_Int8Module):
    """An embedding table with int8 rows and one scale for each row: ids [...] -> [..., embedding_dim]."""

    kind: ClassVar[str] = "int8_embedding"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.dtype = dtype
        """Type of the vectors it gives."""

    @classmethod
    @torch.no_grad()
    def from_float(cls, embedding: nn.Embedding) -> Self:
        """Quantize an `nn.Embedding`."""
        rows, columns = embedding.weight.shape
        with torch.device("meta"):
            built = cls(rows, columns, embedding.padding_idx, embedding.weight.dtype)
        built._store(*quantize_channels(embedding.weight))
        return built

    def spec(self) -> dict[str, Any]:
        return {
            "num_embeddings": self.num_embeddings,
            "embedding_dim": self.embedding_dim,
            "padding_idx": self.padding_idx,
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any], original: nn.Module | None) -> Self:
        return cls(**spec, dtype=_floating_dtype(original))

    def forward(self, ids: Tensor) -> Tensor:
        return int8_embedding(ids, self.weight, self.scale, self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"


def _floating_dtype(original: nn.Module | None) -> torch.dtype:
    """The floating-point type of the module that is replaced: the one that `from_pretrained(dtype=...)` asked for."""
    tensors = [] if original is None else original.parameters(recurse=False)
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
