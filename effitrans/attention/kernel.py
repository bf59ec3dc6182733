"""Gaussian-kernel attention, in its exact form and in the Nyström-accelerated form of Skyformer.

    O_i = sum_j kappa(q_i, k_j) v_j / sum_j kappa(q_i, k_j),    kappa(q, k) = exp(-scale |q - k|^2 / 2)

after Chen, Zeng, Ji and Yang, "Skyformer: Remodel Self-Attention with Gaussian Kernel and Nyström Method" (2021),
eq. 3; note the factor 1 / 2 in the exponent. Deviation: Skyformer does not normalise its rows, this does.

Exact form: |q|^2 cancels in the normalised row, so this is softmax attention with the scores q . k - |k|^2 / 2, and
runs as SDPA on keys with two more columns, which hold -|k|^2 / 2 as a rounded number and what rounding left. Time
O(L S); it honours what a mask can say.

Accelerated form (`num_landmarks` = M, section 4): with landmarks Z from the queries and the keys,

    kappa(Q, K) ~ kappa(Q, Z) (kappa(Z, Z) + r I)^-1 kappa(Z, K)

Deviations: half of the landmarks are queries and half keys, evenly spaced over the tokens instead of drawn, so that
nothing depends on padding, batch-mates or chance; the small matrix is solved by a Cholesky factorisation in float64
instead of a Newton iteration in float32. Two floors keep the estimated row sum, which may come out near zero or
below, from blowing a row up: the sum over the landmarks among the keys, which the true sum cannot fall below; and,
where all keys are far away, the query's largest weight to a landmark times the root of the machine's precision. Time
O(L M D + M^3), memory O(L (M + D)). Attention dropout drops whole values. Causal attention is not defined, nor cross-
attention: the padding of the queries is not known.

Shapes: B batch, H query heads, G key/value heads, R = H / G, L queries, S keys, D head dimension, M landmarks.
"""

from typing import Annotated, Any, ClassVar, Self

import pydantic
import torch
from torch import Tensor
from torch.nn.functional import pad

from effitrans.attention import reference
from effitrans.attention.chunked import scaled_inputs, with_ones
from effitrans.attention.full import full_attention
from effitrans.attention.landmarks import spaced_tokens
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype
from effitrans.config import Width

_SHARE = 256
"""Keys carry their squared length divided by this and queries this number, so that float16 holds both."""


class Kernel(OperatorConfig):
    """Gaussian-kernel attention.

    >>> Kernel(num_landmarks=64).name
    'kernel'
    """

    name: ClassVar[str] = "kernel"

    num_landmarks: Annotated[Width, pydantic.Field(ge=2)] | None = None
    """Landmarks of the accelerated form. Default: none, the exact form."""
    regularization: float | None = pydantic.Field(default=None, gt=0)
    """r, added to the diagonal of the landmarks' kernel matrix, whose diagonal is 1. Default: 0.001."""

    @pydantic.model_validator(mode="after")
    def _regularization_is_used(self) -> Self:
        if self.regularization is not None and self.num_landmarks is None:
            raise ValueError("regularization has no effect without num_landmarks: leave it out")
        return self

    def build(self, site: Site) -> AttentionOperator:
        return (ExactKernelAttention if self.num_landmarks is None else NystromKernelAttention)(self, site)


class ExactKernelAttention(AttentionOperator):
    """The exact form, in quadratic time."""

    honours = frozenset({"causal", "cross", "mask_pattern", "sliding_window"})
    config: Kernel

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
        dim = value_BGSD.shape[-1]
        if torch.is_autocast_enabled(key_BGSD.device.type):
            # the columns must be rounded to what they will be multiplied in
            key_BGSD = key_BGSD.to(torch.get_autocast_dtype(key_BGSD.device.type))
        half = key_BGSD.to(compute_dtype(key_BGSD)).square().sum(-1, keepdim=True) / (-2 * _SHARE)
        rounded = half.detach().to(key_BGSD.dtype)
        key = torch.cat([key_BGSD, rounded, (half - rounded).to(key_BGSD.dtype)], dim=-1)
        query = pad(query_BHLD, (0, 2), value=float(_SHARE))
        out = full_attention(query, key, pad(value_BGSD, (0, 2)), mask, scale=scale, dropout=dropout)
        return out[..., :dim]

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
        num_heads = query_BHLD.shape[1]
        weights = _gaussian(query_BHLD, reference.repeat_heads(key_BGSD, num_heads), scale)
        if (allowed := mask.dense()) is not None:
            weights = weights.masked_fill(~allowed, 0)
        total = weights.sum(-1, keepdim=True)
        return weights / total.masked_fill(total == 0, 1) @ reference.repeat_heads(value_BGSD, num_heads)


class NystromKernelAttention(AttentionOperator):
    """The accelerated form, in linear time."""

    honours = frozenset()
    config: Kernel

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
        dtype, padding = compute_dtype(query_BHLD), mask.key_padding()
        num_heads, groups = query_BHLD.shape[1], key_BGSD.shape[1]
        with torch.autocast(query_BHLD.device.type, enabled=False):
            query, key, value = scaled_inputs(query_BHLD, key_BGSD, value_BGSD, scale, dropout, dtype)
            marks, present, num_keys = self._landmarks(query, key, padding)
            factor = _factor(marks, present, self.config.regularization or 1e-3)

            grouped = marks.unflatten(1, (groups, -1)).flatten(2, 3)
            to_keys = torch.exp(_exponents(grouped, key))
            if padding is not None:
                to_keys = to_keys * padding[:, None, None, :]
            summary = (to_keys @ with_ones(value)).view(-1, num_heads, marks.shape[2], value.shape[-1] + 1)
            summary = summary * present[:, None, :, None]
            summary = torch.cholesky_solve(summary.double(), factor).to(dtype)

            # a factor on a row cancels: the nearest landmark of a query gets the weight 1
            exponents = _exponents(query, marks).masked_fill(~present[:, None, None, :], -torch.inf)
            peak = exponents.detach().amax(-1, keepdim=True)
            to_marks = torch.exp(exponents - peak.masked_fill(peak == -torch.inf, 0))
            rows = to_marks @ summary
            least = to_marks[..., :num_keys].sum(-1, keepdim=True).clamp(min=_floor(dtype))
            out = rows[..., :-1] / torch.maximum(rows[..., -1:], least)
        return out.to(query_BHLD.dtype)

    def _landmarks(self, query_BHLD: Tensor, key_BGSD: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor, int]:
        """Landmarks [B, H, M, D], the keys first; bool [B or 1, M], True where present; how many are keys."""
        count, length = self.config.num_landmarks or 0, key_BGSD.shape[2]
        num_keys = (count + 1) // 2
        parts, present = [], []
        for tensor, number in ((key_BGSD, num_keys), (query_BHLD, count - num_keys)):
            position, there = spaced_tokens(padding, length, number, tensor.device)
            index = position[:, None, :, None].expand(tensor.shape[0], tensor.shape[1], -1, tensor.shape[3])
            parts.append(reference.repeat_heads(tensor.gather(2, index), query_BHLD.shape[1]))
            present.append(there)
        return torch.cat(parts, dim=2), torch.cat(present, dim=1), num_keys

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
        num_heads, padding = query_BHLD.shape[1], mask.key_padding()
        key_BHSD, value_BHSD = (reference.repeat_heads(tensor, num_heads) for tensor in (key_BGSD, value_BGSD))
        count = self.config.num_landmarks or 0
        rows = []
        for row in range(query_BHLD.shape[0]):
            tokens = torch.arange(key_BHSD.shape[2]) if padding is None else padding[row].nonzero().squeeze(1)
            if len(tokens) == 0:
                rows.append(0 * (query_BHLD[row] + key_BHSD[row].sum() + value_BHSD[row].sum()))
                continue
            query, key, value = query_BHLD[row], key_BHSD[row][:, tokens], value_BHSD[row][:, tokens]
            key_marks, query_marks = (
                tensor[:, _firsts(len(tokens), number)]
                for tensor, number in ((key, (count + 1) // 2), (query[:, tokens], count // 2))
            )
            marks = torch.cat([key_marks, query_marks], dim=1)
            middle = _gaussian(marks, marks, scale).double()
            middle = middle + (self.config.regularization or 1e-3) * torch.eye(
                marks.shape[1], dtype=torch.float64, device=marks.device
            )
            weights = _gaussian(query, marks, scale).double() @ middle.inverse() @ _gaussian(marks, key, scale).double()
            least = torch.maximum(
                _gaussian(query, key_marks, scale).sum(-1, keepdim=True),
                _gaussian(query, marks, scale).amax(-1, keepdim=True) * _floor(compute_dtype(query)),
            )
            total = torch.maximum(weights.sum(-1, keepdim=True), least)
            rows.append((weights @ value.double() / total).to(query.dtype))
        return torch.stack(rows)


def _factor(marks_BHMD: Tensor, present_BM: Tensor, regularization: float) -> Tensor:
    """The Cholesky factor of the landmarks' regularised kernel matrix; the identity where a landmark is absent."""
    marks = marks_BHMD.double()
    both = (present_BM[:, None, :] & present_BM[:, :, None])[:, None]
    identity = torch.eye(marks.shape[2], dtype=marks.dtype, device=marks.device)
    matrix = torch.exp(_exponents(marks, marks)) * (both & ~identity.bool()) + (1 + regularization) * identity
    return torch.linalg.cholesky(matrix)


def _exponents(first: Tensor, second: Tensor) -> Tensor:
    """-|x - y|^2 / 2 for all rows x of `first` and y of `second`; never above zero."""
    norms = [tensor.square().sum(-1) / 2 for tensor in (first, second)]
    return (first @ second.mT - norms[0][..., :, None] - norms[1][..., None, :]).clamp(max=0)


def _floor(dtype: torch.dtype) -> float:
    """Below this part of the largest weight, an estimated sum is noise."""
    return torch.finfo(dtype).eps ** 0.5


def _gaussian(first: Tensor, second: Tensor, scale: float) -> Tensor:
    """exp(-scale |x - y|^2 / 2), written out."""
    return torch.exp(-scale / 2 * (first[..., :, None, :] - second[..., None, :, :]).square().sum(-1))


def _firsts(tokens: int, count: int) -> list[int]:
    """The first token of each of `count` segments."""
    count = min(count, tokens)
    segments = [token * count // tokens for token in range(tokens)]
    return [segments.index(segment) for segment in range(count)]
