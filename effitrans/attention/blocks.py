"""Attention within a band around the diagonal, in time and memory O(L * width), forward and backward.

Queries are cut into blocks. The keys that a block can see are one slice of the padded keys, and neighbouring
slices overlap, so all of them together are a strided view (`unfold`): nothing is gathered for a batch of one,
and a batch is copied once. SDPA then runs on [B * blocks, G, rows, keys], where the rows are the block's
queries of all heads of a group.

Shapes: B batch, H query heads, G key/value heads, R = H / G, L queries, S keys, D head dimension, N blocks,
C queries of a block, K keys of a block, E extra keys.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from effitrans.attention.full import scaled_dot_product


@dataclass
class ExtraKeys:
    """Keys outside the band that queries see as well (global tokens)."""

    key_BGED: Tensor
    value_BGED: Tensor
    allowed_BLE: Tensor
    """bool [B or 1, L, E]; must be False where the band holds the key already."""


@dataclass
class Band:
    """Query i sees key j if -left <= j - (i + offset) <= right."""

    left: int
    right: int
    offset: int = 0

    def block_size(self, extra: bool) -> int:
        """Queries of a block: about half the reach, or all of it where extra keys make the blocks copies of the keys.

        Between 32 and 128, which measured fastest on CPUs.
        """
        reach = max(self.left, self.right, 0) + 1
        return min(128, max(32, 1 << (reach if extra else (reach + 1) // 2).bit_length() - 1))


def banded_attention(
    query_BHLD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    band: Band,
    *,
    scale: float,
    padding_BS: Tensor | None = None,
    extra: ExtraKeys | None = None,
    position_bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention [B, H, L, D] within a band.

    Args:
        query_BHLD, key_BGSD, value_BGSD: heads; G divides H.
        band: which keys a query sees.
        scale: factor on the scores.
        padding_BS: bool [B, S], True where there is a token; None: everywhere.
        extra: keys seen besides the band.
        position_bias: [B or 1, H, L, S], added to the scores of the band; not together with `extra`.
        dropout: probability of dropping an attention weight.
    """
    batch, num_heads, length, _ = query_BHLD.shape
    groups, num_keys = key_BGSD.shape[1], key_BGSD.shape[2]
    block = min(band.block_size(extra is not None), length)
    num_blocks = -(-length // block)
    width = block + band.left + band.right

    start = band.offset - band.left
    total = (num_blocks - 1) * block + width
    key_blocks, value_blocks = (
        _slices(pad(tensor, (0, 0, -start, start + total - num_keys)), width, block)
        for tensor in (key_BGSD, value_BGSD)
    )
    query_blocks = _rows(pad(query_BHLD, (0, 0, 0, num_blocks * block - length)), num_blocks, groups)
    allowed = _band_mask(band, num_blocks, block, num_keys, start, padding_BS, query_BHLD.device)
    if extra is not None:
        key_blocks, value_blocks = (
            torch.cat([blocks, tensor.repeat_interleave(num_blocks, 0)], dim=2)
            for blocks, tensor in ((key_blocks, extra.key_BGED), (value_blocks, extra.value_BGED))
        )
        allowed_BLE = pad(extra.allowed_BLE, (0, 0, 0, num_blocks * block - length))
        allowed_extra = allowed_BLE.unflatten(1, (num_blocks, block))
        rows = max(allowed.shape[0], allowed_extra.shape[0])
        allowed = torch.cat([allowed.expand(rows, -1, -1, -1), allowed_extra.expand(rows, -1, -1, -1)], dim=-1)
    allowed = allowed.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)
    bias = None if position_bias is None else _band_bias(position_bias, num_blocks, block, width, start, total, groups)
    if bias is not None:
        bias = bias.expand(batch, -1, -1, -1, -1).flatten(0, 1)
    if groups < num_heads:
        allowed = allowed.repeat(1, 1, num_heads // groups, 1)
    out = scaled_dot_product(
        query_blocks,
        key_blocks,
        value_blocks,
        allowed,
        scale=scale,
        dropout=dropout,
        position_bias=bias,
    )
    out = out.view(batch, num_blocks, groups, num_heads // groups, block, -1).permute(0, 1, 4, 2, 3, 5)
    return out.reshape(batch, num_blocks * block, num_heads, -1)[:, :length].transpose(1, 2)


def _slices(padded_BGTD: Tensor, width: int, step: int) -> Tensor:
    """[B * N, G, K, D]: overlapping slices of the keys, without a copy for a batch of one."""
    return padded_BGTD.unfold(2, width, step).permute(0, 2, 1, 4, 3).flatten(0, 1)


def _rows(padded_BHLD: Tensor, num_blocks: int, groups: int) -> Tensor:
    """[B * N, G, R * C, D]: the queries of a block, those of all heads of a group below one another."""
    batch, num_heads, length, dim = padded_BHLD.shape
    blocks = padded_BHLD.view(batch, groups, num_heads // groups, num_blocks, length // num_blocks, dim)
    return blocks.permute(0, 3, 1, 2, 4, 5).reshape(batch * num_blocks, groups, -1, dim)


def _band_mask(
    band: Band,
    num_blocks: int,
    block: int,
    num_keys: int,
    start: int,
    padding_BS: Tensor | None,
    device: torch.device,
) -> Tensor:
    """bool [B or 1, N, C, K]."""
    width = block + band.left + band.right
    ahead_CK = torch.arange(width, device=device) - torch.arange(block, device=device).unsqueeze(1)
    inside_CK = (ahead_CK >= 0) & (ahead_CK <= band.left + band.right)
    total = (num_blocks - 1) * block + width
    if padding_BS is None:
        index_T = torch.arange(start, start + total, device=device)
        valid_BT = ((index_T >= 0) & (index_T < num_keys)).unsqueeze(0)
    else:
        valid_BT = pad(padding_BS, (-start, start + total - num_keys))
    return inside_CK & valid_BT.unfold(1, width, block).unsqueeze(2)


def _band_bias(bias: Tensor, num_blocks: int, block: int, width: int, start: int, total: int, groups: int) -> Tensor:
    """[B or 1, N, G, R * C, K]: the bias along the band, cut out of [B or 1, H, L, S]."""
    rows, num_heads, length, num_keys = bias.shape
    padded = pad(bias, (-start, start + total - num_keys, 0, num_blocks * block - length))
    strides = padded.stride()
    band = padded.as_strided(
        (rows, num_heads, num_blocks, block, width),
        (strides[0], strides[1], block * (strides[2] + strides[3]), strides[2], strides[3]),
    )
    return band.transpose(1, 2).reshape(rows, num_blocks, groups, -1, width)
