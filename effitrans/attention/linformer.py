"""Linformer: keys and values projected along the length to a fixed number of rows, then softmax attention.

    O = softmax(Q (E K)^T * scale) (F V),    E, F [rank, length] learned

after Wang et al., "Linformer: Self-Attention with Linear Complexity" (2020), eq. 7, with its sharing of projections
between heads and between keys and values (section 4). They start as Gaussians of variance 1 / rank (theorem 2).

Padding: the r-th token of a sequence meets column r of E and F, wherever padding stands, and padded keys enter no sum;
so the result does not depend on the amount of padding. Sequences shorter than `max_length` use the first columns.
Causal attention is not defined: each projected key mixes all positions.

Computed in float32 (float64 for float64), as sums over the length are long: they make large scores. Time
O(S rank D + L rank D), memory O((L + S) D + max_length rank).

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, T = max_length, K = rank, D head dimension.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pydantic
import torch
from torch import Tensor, nn

from effitrans.attention import reference
from effitrans.attention.full import scaled_dot_product
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype
from effitrans.config import Seed, Size, Width
from effitrans.errors import UsageError


class Linformer(OperatorConfig):
    """Attention to a learned low-rank summary of the keys and values.

    >>> Linformer(rank=64, max_length=512).name
    'linformer'
    """

    name: ClassVar[str] = "linformer"

    rank: Width = 128
    """Rows that keys and values are projected to. Default: 128."""
    max_length: Size = 2048
    """Longest input, in positions; a projection has `max_length * rank` weights. Default: 2048."""
    share_heads: bool = True
    """Whether all heads use the same projections. Default: yes."""
    share_key_value: bool = False
    """Whether values use the projection of the keys. Default: no."""
    seed: Seed = 0
    """Of the initial projections. Default: 0."""

    @pydantic.model_validator(mode="after")
    def _fits_memory(self) -> Self:
        if self.max_length * self.rank > 2**30:
            raise ValueError(
                f"rank {self.rank} and max_length {self.max_length} make projections of more than 2^30 weights each: "
                "lower one of them"
            )
        return self

    def build(self, site: Site) -> "LinformerAttention":
        return LinformerAttention(self, site)


class LinformerAttention(AttentionOperator):
    """Linformer attention. The parameters are `key_projection` and `value_projection` [1 or G, T, K]."""

    honours = frozenset({"cross"})
    config: Linformer

    def __init__(self, config: Linformer, site: Site) -> None:
        super().__init__(config, site)
        shape = (1 if config.share_heads else site.num_key_value_heads, config.max_length, config.rank)
        self.key_projection = nn.Parameter(torch.empty(shape))
        self.value_projection = None if config.share_key_value else nn.Parameter(torch.empty(shape))
        if not self.key_projection.is_meta:
            generator = torch.Generator().manual_seed(config.seed)
            for parameter in self.parameters():
                parameter.data.copy_(torch.randn(shape, generator=generator, device="cpu") * config.rank**-0.5)

    def attend(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask: AttentionMask,
        *,
        scale: float,
        dropout: float = 0.0,
        state: State | None = None,
        **extras: Any,
    ) -> Tensor:
        length = key_BGSD.shape[2]
        if length > self.config.max_length:
            raise UsageError(
                f"attention operator 'linformer' was built for max_length={self.config.max_length}, received {length} "
                "keys: shorten the input, or swap in and train Linformer with a larger max_length"
            )
        if (padding := mask.key_padding()) is not None:
            key_BGSD, value_BGSD = _tokens_first(padding, key_BGSD, value_BGSD)
        value_projection = self.key_projection if self.value_projection is None else self.value_projection
        dtype = compute_dtype(query_BHLD)
        with torch.autocast(query_BHLD.device.type, enabled=False):
            key = self._project(self.key_projection, key_BGSD.to(dtype))
            value = self._project(value_projection, value_BGSD.to(dtype))
            out = scaled_dot_product(query_BHLD.to(dtype), key, value, None, scale=scale, dropout=dropout)
        return out.to(query_BHLD.dtype)

    def reference(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask: AttentionMask,
        *,
        scale: float,
        **extras: Any,
    ) -> Tensor:
        padding = mask.key_padding()
        value_projection = self.key_projection if self.value_projection is None else self.value_projection
        rows = []
        for row in range(query_BHLD.shape[0]):
            tokens = torch.arange(key_BGSD.shape[2]) if padding is None else padding[row].nonzero().squeeze(1)
            key = self.key_projection[:, : len(tokens)].mT @ key_BGSD[row, :, tokens]
            value = value_projection[:, : len(tokens)].mT @ value_BGSD[row, :, tokens]
            rows.append(reference.softmax_attention(query_BHLD[row : row + 1], key[None], value[None], scale=scale))
        return torch.cat(rows)

    def keep_heads(self, query_heads: Sequence[int], key_value_heads: Sequence[int]) -> None:
        super().keep_heads(query_heads, key_value_heads)
        if self.config.share_heads:
            return
        for name, parameter in list(self.named_parameters()):
            kept = parameter.detach()[list(key_value_heads)].clone()
            setattr(self, name, nn.Parameter(kept, parameter.requires_grad))

    def _project(self, weight_GTK: Tensor, tensor_BGSD: Tensor) -> Tensor:
        """[B, G, K, D]. Not as a broadcast product, which would copy the projection for every sequence."""
        weight_GSK = weight_GTK[:, : tensor_BGSD.shape[2]].to(tensor_BGSD.dtype)
        if self.config.share_heads:
            return torch.einsum("sk,bgsd->bgkd", weight_GSK[0], tensor_BGSD)
        return torch.einsum("gsk,bgsd->bgkd", weight_GSK, tensor_BGSD)


def _tokens_first(padding_BS: Tensor, *tensors_BGSD: Tensor) -> list[Tensor]:
    """With the tokens in front, in their order, and zeros behind them."""
    order_BS = padding_BS.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    present_BS = padding_BS.gather(1, order_BS)[:, None, :, None]
    index = order_BS[:, None, :, None]
    return [tensor.gather(2, index.expand(tensor.shape)).masked_fill(~present_BS, 0) for tensor in tensors_BGSD]
