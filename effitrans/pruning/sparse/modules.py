"""A linear layer that stores its nonzero weights and a bit for every weight.

The checkpoint holds the values and the bits, so bytes on disk fall with the number of weights. In memory the layer
multiplies a dense matrix, made of them when it is needed: nothing is gained in speed, and no speed is claimed. The
values are the parameters, so a weight that is gone has no gradient and stays gone in further training.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.config import Dimension

_BITS = 32


class SparseLinear(nn.Module):
    """`nn.Linear` (or GPT-2's Conv1D) with a fixed pattern of zeros: [..., in_features] -> [..., out_features].

    `values` holds the weights that are there, row by row; `bits` one bit for each of `out_features * in_features`
    weights in the same order, the lowest bit of the first number first.

    >>> layer = SparseLinear.from_dense(nn.Linear(4, 2), torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0]]).bool())
    >>> layer.values.shape, layer(torch.ones(3, 4)).shape
    (torch.Size([3]), torch.Size([3, 2]))
    """

    kind: ClassVar[str] = "sparse_linear"
    values: nn.Parameter
    bits: Tensor

    def __init__(
        self,
        in_features: Dimension,
        out_features: Dimension,
        nonzero: Dimension,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.values = nn.Parameter(torch.zeros(nonzero, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None
        self.register_buffer("bits", torch.zeros(-(-in_features * out_features // _BITS), dtype=torch.int32))
        self._forget()

    @classmethod
    @torch.no_grad()
    def from_dense(cls, linear: nn.Linear | Conv1D, mask_OI: Tensor) -> Self:
        """A layer with the weights of `linear` where the mask is true; the bias is kept as it is."""
        weight_OI = linear.weight.t() if isinstance(linear, Conv1D) else linear.weight
        built = cls(weight_OI.shape[1], weight_OI.shape[0], int(mask_OI.sum()), False, weight_OI.dtype)
        built.to(weight_OI.device)
        built.values = nn.Parameter(weight_OI[mask_OI.to(weight_OI.device)].clone(), linear.weight.requires_grad)
        built.bits = pack(mask_OI).to(weight_OI.device)
        built.bias = linear.bias
        return built

    def spec(self) -> dict[str, Any]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "nonzero": self.values.numel(),
            "bias": self.bias is not None,
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any], original: nn.Module | None) -> Self:
        tensors = [] if original is None else original.parameters(recurse=False)
        dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
        return cls(**spec, dtype=dtype)

    @property
    def mask(self) -> Tensor:
        """Which weights are there: bool [out_features, in_features]."""
        if self._mask is None or self._mask.device != self.bits.device:
            # Kept for training as well, which takes no tensor made in inference mode.
            with torch.inference_mode(False):
                self._mask = unpack(self.bits, self.out_features * self.in_features)
        return self._mask.reshape(self.out_features, self.in_features)

    @property
    def weight(self) -> Tensor:
        """A dense copy [out_features, in_features] for looking at; writing to it changes nothing."""
        if self.values.is_meta:
            dense = self.values.new_empty(self.out_features, self.in_features)
        else:
            dense = self._scattered().detach().clone()
        # Initialisers of transformers that come upon it have nothing to do.
        dense._is_hf_initialized = True  # type: ignore[attr-defined]
        return dense

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.values.requires_grad:
            return nn.functional.linear(x, self._scattered(), self.bias)
        version = (self.values._version, self.values.data_ptr(), self.values.dtype)
        if self._dense is None or self._made_of != version:
            with torch.inference_mode(False), torch.no_grad():
                self._dense, self._made_of = self._scattered(), version
        return nn.functional.linear(x, self._dense, self.bias)

    def _scattered(self) -> Tensor:
        zeros = self.values.new_zeros(self.out_features, self.in_features)
        return zeros.masked_scatter(self.mask, self.values)

    def _forget(self) -> None:
        self._mask: Tensor | None = None
        self._dense: Tensor | None = None
        self._made_of: Any = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        density = self.values.numel() / max(1, self.in_features * self.out_features)
        return f"in_features={self.in_features}, out_features={self.out_features}, density={density:.3f}"


def pack(mask: Tensor) -> Tensor:
    """Bits of a mask, in row-major order: bool [...] -> int32 [ceil(n / 32)]."""
    flat = mask.flatten().cpu().long()
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % _BITS)]).reshape(-1, _BITS)
    return (padded << torch.arange(_BITS)).sum(1).to(torch.int32)


def unpack(bits: Tensor, count: int) -> Tensor:
    """The first `count` bits: int32 [n] -> bool [count]."""
    shifts = torch.arange(_BITS, dtype=torch.int32, device=bits.device)
    return ((bits[:, None] >> shifts) & 1).bool().flatten()[:count]
