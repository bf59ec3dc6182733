"""The chunked form of linear attention: matrix products of a few sizes instead of a loop over positions.

With features phi and state M_t = sum_{j <= t} phi(k_j) v_j^T, z_t = sum_{j <= t} phi(k_j), causal linear attention is
o_t = phi(q_t) M_t / (phi(q_t) . z_t). Positions are cut into chunks of C: what comes from earlier chunks goes through
the state at the chunk's start, what comes from the chunk itself through a masked C x C product (Hua et al.,
"Transformer Quality in Linear Time" (2022), section 3.3; Yang et al., "Gated Linear Attention" (2024), section 4).
Time O(L (C + F) D), memory O(L F + L / C F D).

The state is kept in float32 (float64 for float64 inputs): in half precision its sums overflow or stop counting.

Shapes: B batch, G key/value heads, R query heads of a group, L positions, N chunks, C positions of a chunk,
F features, D head dimension.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

Memory = tuple[Tensor, Tensor]
"""The state (M [B, G, F, D], z [B, G, F])."""


def summarise(key_BGSF: Tensor, value_BGSD: Tensor, memory: Memory | None = None) -> Memory:
    """The state after these keys, whose order does not matter; a masked key is zeros."""
    memory_BGFD, total_BGF = key_BGSF.transpose(-1, -2) @ value_BGSD, key_BGSF.sum(2)
    return (memory_BGFD, total_BGF) if memory is None else (memory[0] + memory_BGFD, memory[1] + total_BGF)


def look_up(query_BGRLF: Tensor, memory: Memory) -> Tensor:
    """What queries read from a state: [B, G, R, L, D]."""
    memory_BGFD, total_BGF = memory
    return normalise(query_BGRLF @ memory_BGFD.unsqueeze(2), query_BGRLF @ total_BGF[:, :, None, :, None])


def causal(
    query_BGRLF: Tensor, key_BGLF: Tensor, value_BGLD: Tensor, memory: Memory | None, chunk: int
) -> tuple[Tensor, Memory]:
    """Query t attends to the keys up to t and to what `memory` holds.

    Args:
        query_BGRLF, key_BGLF: features; a masked key is zeros.
        value_BGLD: values.
        memory: the state of earlier positions; None at the start.
        chunk: positions of a chunk.

    Returns:
        The output [B, G, R, L, D] and the state after the last position.
    """
    length = key_BGLF.shape[2]
    if length == 1:
        memory = summarise(key_BGLF, value_BGLD, memory)
        return look_up(query_BGRLF, memory), memory
    chunk = min(chunk, length)
    missing = -length % chunk
    query, key, value = (
        pad(tensor, (0, 0, 0, missing)).unflatten(-2, (-1, chunk)) for tensor in (query_BGRLF, key_BGLF, value_BGLD)
    )
    memory_NFD, total_NF = key.transpose(-1, -2) @ value, key.sum(-2)
    if memory is not None:
        memory_NFD = torch.cat([memory[0].unsqueeze(2), memory_NFD], dim=2)
        total_NF = torch.cat([memory[1].unsqueeze(2), total_NF], dim=2)
    else:
        memory_NFD, total_NF = pad(memory_NFD, (0, 0, 0, 0, 1, 0)), pad(total_NF, (0, 0, 1, 0))
    memory_NFD, total_NF = memory_NFD.cumsum(2), total_NF.cumsum(2)

    weights = (query @ key.transpose(-1, -2).unsqueeze(2)).tril()
    numerator = query @ memory_NFD[:, :, None, :-1] + weights @ value.unsqueeze(2)
    denominator = query @ total_NF[:, :, None, :-1, :, None] + weights.sum(-1, keepdim=True)
    out = normalise(numerator, denominator).flatten(-3, -2)[..., :length, :]
    return out, (memory_NFD[:, :, -1], total_NF[:, :, -1])


def normalise(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator; zeros where no key was seen, which is where the denominator is zero."""
    return numerator / denominator.masked_fill(denominator == 0, 1)
