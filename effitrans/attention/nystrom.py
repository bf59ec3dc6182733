"""Nyströmformer: softmax attention through M landmarks of the queries and M of the keys.

    O = softmax(Q K'^T) pinv(softmax(Q' K'^T)) (softmax(Q' K^T) V)        with Q', K' the landmarks, scores * scale

after Xiong et al., "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention" (2021), eq. 13 and
algorithm 1. Landmarks are the means of M segments (section 3.2), here of the tokens, so that padding neither enters
them nor moves their borders. The pseudo-inverse Z of A is the limit of (eq. 11, after Razavi et al., 2014)

    Z <- Z / 4 (13 I - A Z (15 I - A Z (7 I - A Z))),    Z_0 = A^T / (|A|_1 |A|_inf)

with the norms of each matrix; the published code scales by the largest over the whole batch. The residual of section
3.3, a depth-wise convolution of the values along the length, is off by default; its weights start at zero, so that a
layer starts as attention. Attention dropout drops whole values, as in `linear`. Causal attention is not defined:
every landmark mixes tokens from all over a segment. Nor is cross-attention: the padding of the queries is not known.

Computed in float32 (float64 for float64), as the pseudo-inverse magnifies rounding. The two long products run as
SDPA. Time O(L M D + M^3), memory O(L (M + D)).

Shapes: B batch, H query heads, G key/value heads, R = H / G, L queries and keys, D head dimension, M landmarks.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from effitrans.attention import reference
from effitrans.attention.chunked import scaled_inputs
from effitrans.attention.full import scaled_dot_product
from effitrans.attention.landmarks import segment_means
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype
from effitrans.config import Width


class Nystrom(OperatorConfig):
    """Attention through landmarks.

    >>> Nystrom(num_landmarks=32).name
    'nystrom'
    """

    name: ClassVar[str] = "nystrom"

    num_landmarks: Width = 64
    """Segments that queries and keys are averaged over. Default: 64."""
    iterations: int = pydantic.Field(default=6, ge=1, le=1000)
    """Steps towards the pseudo-inverse. Default: 6."""
    convolution: Width | None = None
    """Positions that the depth-wise convolution of the values spans, an odd number; the paper has 33. Default: none."""

    @pydantic.field_validator("convolution")
    @classmethod
    def _has_a_centre(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise ValueError("the convolution must span an odd number of positions")
        return value

    def build(self, site: Site) -> "NystromAttention":
        return NystromAttention(self, site)


class NystromAttention(AttentionOperator):
    """Nyström attention; see the module's docstring. The residual's weight, if any, is `convolution` [H, span]."""

    honours = frozenset()
    config: Nystrom

    def __init__(self, config: Nystrom, site: Site) -> None:
        super().__init__(config, site)
        span = config.convolution
        self.convolution = None if span is None else nn.Parameter(torch.zeros(site.num_heads, span))

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
        dtype, count = compute_dtype(query_BHLD), self.config.num_landmarks
        padding = mask.key_padding()
        with torch.autocast(query_BHLD.device.type, enabled=False):
            query, key, value = scaled_inputs(query_BHLD, key_BGSD, value_BGSD, scale, dropout, dtype)
            num_heads, groups = query.shape[1], key.shape[1]
            key_means, present = segment_means(key, padding, count)
            # the heads of a group side by side, so that its keys are not repeated
            query_means = segment_means(query, padding, count)[0].unflatten(1, (groups, -1)).flatten(2, 3)
            middle = _softmax(query_means @ key_means.transpose(-1, -2), present)
            middle = middle.view(-1, num_heads, count, count)
            if present is not None:
                middle = middle * present[:, None, :, None]
            seen = None if padding is None else padding[:, None, None, :]
            summary = scaled_dot_product(query_means, key, value, seen, scale=1.0).view(
                -1, num_heads, count, value.shape[-1]
            )
            summary = pseudo_inverse(middle, self.config.iterations) @ summary
            out = scaled_dot_product(
                query,
                reference.repeat_heads(key_means, num_heads),
                summary,
                None if present is None else present[:, None, None, :],
                scale=1.0,
            )
            if self.convolution is not None:
                if padding is not None:
                    value = value.masked_fill(~padding[:, None, :, None], 0)
                out = out + _convolve(value, self.convolution.to(dtype))
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
        num_heads, length = query_BHLD.shape[1], query_BHLD.shape[2]
        key_BHSD, value_BHSD = (reference.repeat_heads(tensor, num_heads) for tensor in (key_BGSD, value_BGSD))
        padding = mask.key_padding()
        rows = []
        for row in range(query_BHLD.shape[0]):
            tokens = torch.arange(length) if padding is None else padding[row].nonzero().squeeze(1)
            if len(tokens) == 0:
                rows.append(0 * (query_BHLD[row] + key_BHSD[row].sum() + value_BHSD[row].sum()))
                continue
            query, key, value = (tensor[row] for tensor in (query_BHLD, key_BHSD, value_BHSD))
            count = min(self.config.num_landmarks, len(tokens))
            segments = torch.arange(len(tokens)) * count // len(tokens)
            parts = [tokens[segments == segment] for segment in range(count)]
            query_means, key_means = (
                torch.stack([tensor[:, part].mean(1) for part in parts], dim=1) for tensor in (query, key)
            )
            first = torch.softmax(query @ key_means.mT * scale, dim=-1)
            middle = torch.softmax(query_means @ key_means.mT * scale, dim=-1)
            last = torch.softmax(query_means @ key[:, tokens].mT * scale, dim=-1)
            out = first @ pseudo_inverse(middle, self.config.iterations) @ last @ value[:, tokens]
            if self.convolution is not None:
                reach = self.convolution.shape[1] // 2
                positions = torch.arange(length, device=query.device)
                ahead = positions - positions[:, None]
                band = self.convolution[:, (ahead + reach).clamp(0, 2 * reach)].masked_fill(ahead.abs() > reach, 0)
                out = out + band[..., tokens] @ value[:, tokens]
            rows.append(out)
        return torch.stack(rows)

    def keep_heads(self, query_heads: Sequence[int], key_value_heads: Sequence[int]) -> None:
        super().keep_heads(query_heads, key_value_heads)
        if self.convolution is not None:
            kept = self.convolution.detach()[list(query_heads)].clone()
            self.convolution = nn.Parameter(kept, self.convolution.requires_grad)


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """The iteration of the module's docstring on [..., M, M] with entries that are not negative.

    Rows and columns of zeros stay zeros.
    """
    size = matrix.sum(-1).amax(-1) * matrix.sum(-2).amax(-1)
    inverse = matrix.mT / size.masked_fill(size == 0, 1)[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = inverse / 4 @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse


def _softmax(scores_BGXM: Tensor, present_BM: Tensor | None) -> Tensor:
    """Over the landmarks that are present; zeros where none is."""
    if present_BM is None:
        return torch.softmax(scores_BGXM, dim=-1)
    present = present_BM[:, None, None, :]
    return torch.softmax(scores_BGXM.masked_fill(~present, torch.finfo(scores_BGXM.dtype).min), dim=-1) * present


def _convolve(value_BGSD: Tensor, weight_HK: Tensor) -> Tensor:
    """[B, H, S, D]: each query head's filter over the values of its group."""
    weight = weight_HK[:, None, :, None]
    padding = (weight_HK.shape[1] // 2, 0)
    return torch.nn.functional.conv2d(value_BGSD, weight, padding=padding, groups=value_BGSD.shape[1])
