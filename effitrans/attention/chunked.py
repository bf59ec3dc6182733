"""The chunked form of linear attention: matrix products of a few sizes instead of a loop over positions.

With features phi and the state M_t = sum_{j <= t} phi(k_j) [v_j, 1]^T, causal linear attention reads phi(q_t) M_t and
divides its first D numbers by the last, the normaliser. Positions are cut into chunks of C: what comes from earlier
chunks goes through the state at the chunk's start, what comes from the chunk itself through a masked C x C product
(Hua et al., "Transformer Quality in Linear Time" (2022), section 3.3; Yang et al., "Gated Linear Attention" (2024),
section 4). Time O(L (C + F) D), memory O(L F + L / C F D).

With a decay the state is M_t = g_t M_{t-1} + phi(k_t) [v_t, 1]^T, so that what t reads of s is times g_{s+1} ... g_t,
the exponential of a difference of two running sums of log g. Within a chunk these are a C x C matrix, and the states
of chunks are added with the decays of whole chunks. No exponent is above zero.

The state is kept in float32 (float64 for float64 inputs): in half precision its sums overflow or stop counting.

Shapes: B batch, G key/value heads, R query heads of a group, L queries, S keys, N chunks, C positions of a chunk,
F features, D head dimension, E = D + 1, X = B G, Y = F E.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

_SPAN = 64
"""Chunks whose sums are added by one triangular product; more go through a second level."""


def scaled_inputs(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys times the root of the scale, and values with dropout, in the dtype of the computation."""
    root = scale**0.5
    value = value.to(dtype)
    if dropout:
        value = value * torch.nn.functional.dropout(torch.ones_like(value[..., :1]), dropout)
    if root == 1:
        return query.to(dtype), key.to(dtype), value
    return query.to(dtype) * root, key.to(dtype) * root, value


def summarise(
    key_BGSF: Tensor, value_BGSD: Tensor, memory_BGFE: Tensor | None = None, log_decay_BGS: Tensor | None = None
) -> Tensor:
    """The state [B, G, F, E] after these keys, whose order does not matter without a decay; a masked key is zeros."""
    if log_decay_BGS is not None:
        running_BGS = log_decay_BGS.cumsum(-1)
        last_BG1 = running_BGS[..., -1:]
        key_BGSF = key_BGSF * torch.exp(last_BG1 - running_BGS).unsqueeze(-1)
        memory_BGFE = None if memory_BGFE is None else memory_BGFE * torch.exp(last_BG1).unsqueeze(-1)
    sums = _Summary.apply(key_BGSF, value_BGSD)
    return sums if memory_BGFE is None else memory_BGFE + sums


def look_up(query_BGRLF: Tensor, memory_BGFE: Tensor) -> Tensor:
    """What queries read from a state: [B, G, R, L, D]."""
    rows = _LookUp.apply(query_BGRLF.flatten(2, 3), memory_BGFE)
    return rows.unflatten(2, query_BGRLF.shape[2:4])


class _Summary(torch.autograd.Function):
    """key^T @ [value, 1] without a copy of the values, and with gradients that lie in memory as their inputs do."""

    generate_vmap_rule = True

    @staticmethod
    def forward(key: Tensor, value: Tensor) -> Tensor:
        return torch.cat([key.mT @ value, key.sum(-2).unsqueeze(-1)], dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        key, value = ctx.saved_tensors
        to_key = (value @ grad[..., :-1].mT).add_(grad[..., -1].unsqueeze(-2))
        return to_key, key @ grad[..., :-1]


class _LookUp(torch.autograd.Function):
    """The first D numbers of query @ memory over the last. A product with one row is fast, with one column slow."""

    generate_vmap_rule = True

    @staticmethod
    def forward(query: Tensor, memory: Tensor) -> Tensor:
        return (query @ memory[..., :-1]).div_(_total(query, memory))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        query, memory, rows = ctx.saved_tensors
        divisor = _total(query, memory)
        total = (grad * rows).sum(-1, keepdim=True) / -divisor
        grad = grad / divisor
        to_query = (grad @ memory[..., :-1].mT).addcmul_(total, memory[..., -1].unsqueeze(-2))
        return to_query, torch.cat([query.mT @ grad, (total.mT @ query).mT], dim=-1)


def _total(query: Tensor, memory: Tensor) -> Tensor:
    """[..., L, 1]: the normaliser; one where it is zero, as no key was seen."""
    return _not_zero(memory[..., -1].unsqueeze(-2) @ query.mT).mT


def causal(
    query_BGRLF: Tensor,
    key_BGLF: Tensor,
    value_BGLD: Tensor,
    memory_BGFE: Tensor | None,
    chunk: int,
    log_decay_BGL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Query t attends to the keys up to t and to what `memory_BGFE` holds.

    Args:
        query_BGRLF, key_BGLF: features; a masked key is zeros.
        value_BGLD: values.
        memory_BGFE: the state of earlier positions; None at the start.
        chunk: positions of a chunk.
        log_decay_BGL: log of what each position keeps of the state before it; None: everything.

    Returns:
        The output [B, G, R, L, D] and the state after the last position.
    """
    batch, groups, repeats, length, features = query_BGRLF.shape
    if length == 1:
        memory_BGFE = summarise(key_BGLF, value_BGLD, memory_BGFE, log_decay_BGL)
        return look_up(query_BGRLF, memory_BGFE), memory_BGFE
    chunk = min(chunk, length)
    count = -(-length // chunk)
    rest = count * chunk - length
    # [B * G * N, C, ...]; the rows of a group's query heads lie below one another
    key = pad(key_BGLF, (0, 0, 0, rest)).reshape(-1, chunk, features)
    value = with_ones(pad(value_BGLD, (0, 0, 0, rest))).reshape(key.shape[0], chunk, -1)
    query = pad(query_BGRLF, (0, 0, 0, rest)).unflatten(3, (count, chunk)).transpose(2, 3)
    query = query.reshape(-1, repeats * chunk, features)

    decay = None if log_decay_BGL is None else _Decay.of(pad(log_decay_BGL, (0, rest)).reshape(-1, count, chunk))
    kept = key if decay is None else key * decay.to_end
    sums = torch.bmm(kept.transpose(1, 2), value).view(batch * groups, count, -1)
    before = _exclusive_sums(sums) if decay is None else _decayed_sums(sums, decay.log_XN)
    if memory_BGFE is not None:
        memory = memory_BGFE.reshape(batch * groups, 1, -1)
        before = before + (memory if decay is None else memory * decay.from_first)
    last = before[:, -1] if decay is None else before[:, -1] * decay.of_last
    after = (last + sums[:, -1]).view(batch, groups, features, -1)

    weights = torch.bmm(query, key.transpose(1, 2)).view(-1, repeats, chunk, chunk)
    if decay is None:
        weights = weights.tril()
    else:
        weights = weights * decay.within
        query = (query.view(-1, repeats, chunk, features) * decay.from_start).view_as(query)
    weights = weights.view(-1, repeats * chunk, chunk)
    rows = torch.baddbmm(torch.bmm(query, before.reshape(-1, features, after.shape[-1])), weights, value)
    out = normalise(rows).view(batch, groups, count, repeats, chunk, -1).transpose(2, 3)
    return out.flatten(3, 4)[..., :length, :], after


@dataclass
class _Decay:
    """What is left of a key, or of a state, at other places of the chunks."""

    log_XN: Tensor
    """Log decay over each chunk."""
    within: Tensor
    """[X N, 1, C, C]: of key s at query t of the same chunk; 0 for t < s."""
    from_start: Tensor
    """[X N, 1, C, 1]: of the state before the chunk at query t."""
    to_end: Tensor
    """[X N, C, 1]: of key s after the chunk."""

    @classmethod
    def of(cls, log_XNC: Tensor) -> "_Decay":
        running = log_XNC.flatten(0, 1).cumsum(-1)
        ahead = torch.ones(running.shape[1], running.shape[1], dtype=torch.bool, device=running.device).triu(1)
        within = torch.exp((running.unsqueeze(2) - running.unsqueeze(1)).masked_fill(ahead, -torch.inf))
        return cls(
            running[:, -1].view(log_XNC.shape[:2]),
            within.unsqueeze(1),
            torch.exp(running)[:, None, :, None],
            torch.exp(running[:, -1:] - running).unsqueeze(-1),
        )

    @property
    def from_first(self) -> Tensor:
        """[X, N, 1]: of the state before the first chunk at the start of each chunk."""
        return torch.exp(self.log_XN.cumsum(1) - self.log_XN).unsqueeze(-1)

    @property
    def of_last(self) -> Tensor:
        """[X, 1]: over the last chunk."""
        return torch.exp(self.log_XN[:, -1:])


def _decayed_sums(sums_XNY: Tensor, log_XN: Tensor) -> Tensor:
    """The state before each entry along N, where entry n adds sums[n] after all before it decayed by exp(log[n])."""
    count = sums_XNY.shape[1]
    if count > _SPAN:
        spans = pad(sums_XNY, (0, 0, 0, -count % _SPAN)).unflatten(1, (-1, _SPAN))
        logs = pad(log_XN, (0, -count % _SPAN)).unflatten(1, (-1, _SPAN))
        within = _decayed_sums(spans.flatten(0, 1), logs.flatten(0, 1)).view_as(spans)
        whole = within[:, :, -1] * torch.exp(logs[:, :, -1:]) + spans[:, :, -1]
        before = _decayed_sums(whole, logs.sum(-1)).unsqueeze(2)
        return (within + before * torch.exp(logs.cumsum(-1) - logs).unsqueeze(-1)).flatten(1, 2)[:, :count]
    running = log_XN.cumsum(1)
    ahead = torch.ones(count, count, dtype=torch.bool, device=running.device).triu(0)
    left = ((running - log_XN).unsqueeze(2) - running.unsqueeze(1)).masked_fill(ahead, -torch.inf)
    return torch.exp(left) @ sums_XNY


def _exclusive_sums(sums_XNY: Tensor) -> Tensor:
    """Sum over the entries before each along N, by a product with a triangle (cumsum is slow along an inner axis)."""
    count = sums_XNY.shape[1]
    if count > _SPAN:
        spans = pad(sums_XNY, (0, 0, 0, -count % _SPAN)).unflatten(1, (-1, _SPAN))
        within = _exclusive_sums(spans.flatten(0, 1)).view_as(spans)
        return (within + _exclusive_sums(spans.sum(2)).unsqueeze(2)).flatten(1, 2)[:, :count]
    triangle = torch.ones(count, count, dtype=sums_XNY.dtype, device=sums_XNY.device).tril(-1)
    return triangle @ sums_XNY


def with_ones(value_BGSD: Tensor) -> Tensor:
    """[B, G, S, E]: a column of ones, whose weighted sum is the normaliser."""
    return torch.cat([value_BGSD, torch.ones_like(value_BGSD[..., :1])], dim=-1)


def normalise(rows: Tensor) -> Tensor:
    """All columns but the last over the last; zeros where no key was seen, which is where the normaliser is zero."""
    return rows[..., :-1] / _not_zero(rows[..., -1:])


def _not_zero(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1)


def run_segment(function: Callable[..., Any], *inputs: Any, recompute: bool) -> Any:
    """Call; with `recompute`, what the call computes is not kept for the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
