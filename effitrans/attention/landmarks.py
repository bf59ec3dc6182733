"""A few vectors that stand for the tokens of a sequence, whatever the amount and place of padding.

Tokens are counted, not positions: the r-th of n tokens belongs to segment floor(r M / max(n, M)). So a sequence has
the same landmarks alone and among longer ones; one with fewer than M tokens has one landmark a token, and the rest
are absent.

Shapes: B batch, H heads, S positions, M landmarks, D head dimension.
"""

import torch
from torch import Tensor


def segment_means(tensor_BHSD: Tensor, padding_BS: Tensor | None, count: int) -> tuple[Tensor, Tensor | None]:
    """The means of `count` segments of the tokens.

    Args:
        tensor_BHSD: one vector a position.
        padding_BS: bool, True where there is a token; None: everywhere.
        count: M.

    Returns:
        The means [B, H, M, D], zeros where absent, and bool [B, M] or [1, M], True where present; None if all are.
    """
    batch, length = tensor_BHSD.shape[0], tensor_BHSD.shape[2]
    if padding_BS is None:
        rank_BS, tokens_B = torch.arange(length, device=tensor_BHSD.device)[None], None
        segment_BS = rank_BS * count // max(length, count)
    else:
        rank_BS, tokens_B = padding_BS.cumsum(1) - 1, padding_BS.sum(1, keepdim=True)
        segment_BS = torch.where(padding_BS, rank_BS * count // tokens_B.clamp(min=count), -1)
    index_M = torch.arange(count, device=tensor_BHSD.device)
    belongs_BMS = (segment_BS[:, None, :] == index_M[:, None]).to(tensor_BHSD.dtype)
    size_BM = belongs_BMS.sum(-1)
    belongs_BMS = belongs_BMS / size_BM.clamp(min=1)[..., None]
    # not a broadcast product, which would copy the left side for every head
    means = torch.einsum("bms,bhsd->bhmd", belongs_BMS.expand(batch, -1, -1), tensor_BHSD)
    return means, None if padding_BS is None and length >= count else size_BM > 0


def spaced_tokens(padding_BS: Tensor | None, length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions of the first tokens of `count` segments.

    Returns:
        Positions [B or 1, M], and bool of the same shape, False where the landmark is absent (its position is any).
    """
    index_M = torch.arange(count, device=device)[None]
    if padding_BS is None:
        rank_BM = _ceil(index_M * max(length, count), count)
        return rank_BM.clamp(max=length - 1), rank_BM < length
    tokens_BS = padding_BS.cumsum(1)
    tokens_B1 = tokens_BS[:, -1:]
    rank_BM = _ceil(index_M * tokens_B1.clamp(min=count), count)
    position_BM = torch.searchsorted(tokens_BS, rank_BM + 1)
    return position_BM.clamp(max=length - 1), rank_BM < tokens_B1


def _ceil(numerator: Tensor, denominator: int) -> Tensor:
    return (numerator + denominator - 1) // denominator
