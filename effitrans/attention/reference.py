"""Dense oracles: attention as the formulas are written, in quadratic time and memory.

Every operator's fast path is tested against these, for values and gradients. Nothing here is tuned.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension, F features.
"""

import torch
from torch import Tensor


def repeat_heads(tensor_BGSD: Tensor, num_heads: int) -> Tensor:
    """[B, H, S, D]: each key/value head once for every query head of its group."""
    return tensor_BGSD.repeat_interleave(num_heads // tensor_BGSD.shape[1], dim=1)


def softmax_attention(
    query_BHLD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    allowed: Tensor | None = None,
    *,
    scale: float,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(cap(scale * Q K^T) + bias) V [B, H, L, D] over the allowed keys; a query with none gives zeros.

    Args:
        query_BHLD, key_BGSD, value_BGSD: heads; G divides H.
        allowed: bool, broadcast to [B, H, L, S]; None: all.
        scale: factor on the scores.
        position_bias: added to the scores, broadcast to [B, H, L, S].
        softcap: scores become `softcap * tanh(scores / softcap)`.
        s_aux: [H], the score of a sink that takes part in the softmax and has no value.
        dropout: probability of dropping an attention weight.
    """
    num_heads = query_BHLD.shape[1]
    key_BHSD, value_BHSD = repeat_heads(key_BGSD, num_heads), repeat_heads(value_BGSD, num_heads)
    scores = query_BHLD @ key_BHSD.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    if allowed is None:
        allowed = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=scores.device)
    scores = scores.masked_fill(~allowed, -torch.inf)
    peak = scores.amax(-1, keepdim=True).detach()
    if s_aux is not None:
        peak = torch.maximum(peak, s_aux.detach().view(1, -1, 1, 1))
    peak = peak.masked_fill(peak == -torch.inf, 0)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    if s_aux is not None:
        total = total + torch.exp(s_aux.view(1, -1, 1, 1) - peak)
    weights = weights / total.masked_fill(total == 0, 1)
    weights = torch.nn.functional.dropout(weights, dropout)
    return weights.to(value_BHSD.dtype) @ value_BHSD


def local_pattern(
    query_positions_L: Tensor,
    key_positions_S: Tensor,
    window: int,
    *,
    two_sided: bool = True,
    dilation: int = 1,
    num_global_tokens: int = 0,
    first_B: Tensor | None = None,
) -> Tensor:
    """bool [B or 1, 1, L, S]: which keys a query sees in a sliding window, before causality and padding.

    Args:
        query_positions_L, key_positions_S: positions in the sequence.
        window: number of keys on each side, the query's own position counted.
        two_sided: whether keys after the query are seen.
        dilation: distance between neighbouring keys of the window.
        num_global_tokens: the first tokens of the sequence, which see and are seen by all.
        first_B: position of the first token of each sequence (where padding on the left ends); default 0.
    """
    distance_LS = query_positions_L[:, None] - key_positions_S[None, :]
    seen_LS = (distance_LS.abs() < window * dilation) & (distance_LS % dilation == 0)
    if not two_sided:
        seen_LS = seen_LS & (distance_LS >= 0)
    if num_global_tokens == 0:
        return seen_LS[None, None]
    first_B1 = first_B[:, None] if first_B is not None else query_positions_L.new_zeros(1, 1)
    global_BL = _among_first(query_positions_L - first_B1, num_global_tokens)
    global_BS = _among_first(key_positions_S - first_B1, num_global_tokens)
    return (seen_LS | global_BL[:, :, None] | global_BS[:, None, :])[:, None]


def _among_first(index: Tensor, count: int) -> Tensor:
    return (index >= 0) & (index < count)


def linear_attention(
    query_features_BHLF: Tensor,
    key_features_BGSF: Tensor,
    value_BGSD: Tensor,
    allowed: Tensor | None = None,
    log_decay_BGS: Tensor | None = None,
) -> Tensor:
    """sum_j (phi(q) . phi(k_j)) v_j / sum_j (phi(q) . phi(k_j)) over the allowed keys; zeros where the sum is empty.

    With a decay the last query stands at the last key, and what query i reads of key j is times g_{j+1} ... g_i.
    """
    num_heads = query_features_BHLF.shape[1]
    key_BHSF, value_BHSD = repeat_heads(key_features_BGSF, num_heads), repeat_heads(value_BGSD, num_heads)
    weights = query_features_BHLF @ key_BHSF.transpose(-1, -2)
    if log_decay_BGS is not None:
        running_BHS = log_decay_BGS.repeat_interleave(num_heads // log_decay_BGS.shape[1], dim=1).cumsum(-1)
        running_BHL = running_BHS[..., -query_features_BHLF.shape[2] :]
        # keys ahead of the query, whose exponents are positive, are not allowed
        weights = weights * torch.exp((running_BHL.unsqueeze(-1) - running_BHS.unsqueeze(-2)).clamp(max=0))
    if allowed is not None:
        weights = weights.masked_fill(~allowed, 0)
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1) @ value_BHSD
