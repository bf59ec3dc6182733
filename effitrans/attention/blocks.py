"""Attention of blocks of queries to the keys they see, in time and memory O(L * keys), forward and backward.

`banded_attention`: the keys around the diagonal. What a block can see is one slice of the padded keys, and
neighbouring slices overlap, so all of them together are a strided view (`unfold`): nothing is gathered for a
batch of one, and a batch is copied once. `gathered_attention`: any blocks of keys, which are copied.

SDPA then runs on [B * blocks, G, rows, keys], where the rows are the block's queries of all heads of a group.

Shapes: B batch, H query heads, G key/value heads, R = H / G, L queries, S keys, D head dimension, N blocks,
C queries of a block, K keys of a block, E extra keys. Of gathered blocks: M blocks of C keys, K of them seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from effitrans.attention.full import scaled_dot_product

CPU_SEGMENT_BYTES, SEGMENT_BYTES = 16 * 2**20, 512 * 2**20
"""Gradients of the blocks' keys and values that are held at a time in training, on CPUs and elsewhere; more are
computed in segments."""


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
    width = block + band.left + band.right
    num_blocks = -(-length // block)
    per_segment = -(-num_blocks // _segments(length, block, width, (query_BHLD, key_BGSD, value_BGSD), dropout))
    segments = -(-num_blocks // per_segment)
    num_blocks = segments * per_segment

    start = band.offset - band.left
    total = (num_blocks - 1) * block + width
    more = num_blocks * block - length
    queries = (pad(query_BHLD, (0, 0, 0, more)) if more else query_BHLD).unflatten(2, (segments, -1)).unbind(2)
    keys, values = (
        _overlapping(pad(tensor, (0, 0, -start, start + total - num_keys)), segments, per_segment * block)
        for tensor in (key_BGSD, value_BGSD)
    )
    allowed = _band_mask(band, num_blocks, block, num_keys, start, padding_BS, query_BHLD.device)
    if extra is not None:
        allowed_extra = pad(extra.allowed_BLE, (0, 0, 0, more)).unflatten(1, (num_blocks, block))
        rows = max(allowed.shape[0], allowed_extra.shape[0])
        allowed = torch.cat([allowed.expand(rows, -1, -1, -1), allowed_extra.expand(rows, -1, -1, -1)], dim=-1)
    allowed = allowed.expand(batch, -1, -1, -1)
    if groups < num_heads:
        allowed = allowed.repeat(1, 1, num_heads // groups, 1)
    bias = None if position_bias is None else _band_bias(position_bias, num_blocks, block, width, start, total, groups)
    outputs = []
    for number, (query, key, value) in enumerate(zip(queries, keys, values, strict=True)):
        key_blocks, value_blocks = _slices(key, width, block), _slices(value, width, block)
        if extra is not None:
            key_blocks = torch.cat([key_blocks, extra.key_BGED.repeat_interleave(per_segment, 0)], dim=2)
            value_blocks = torch.cat([value_blocks, extra.value_BGED.repeat_interleave(per_segment, 0)], dim=2)
        here = slice(number * per_segment, (number + 1) * per_segment)
        out = scaled_dot_product(
            _rows(query, per_segment, groups),
            key_blocks,
            value_blocks,
            allowed[:, here].flatten(0, 1).unsqueeze(1),
            scale=scale,
            dropout=dropout,
            position_bias=None if bias is None else bias[:, here].expand(batch, -1, -1, -1, -1).flatten(0, 1),
        )
        outputs.append(_heads(out, per_segment, num_heads))
    return (outputs[0] if segments == 1 else torch.cat(outputs, dim=2))[:, :, :length]


def _segments(length: int, block: int, width: int, tensors: Sequence[Tensor], dropout: float = 0.0) -> int:
    """Parts into which the blocks are cut, one after another: a block has gradients of its own for all `width` keys.

    One under a compiler, as it depends on the length, and where no gradient is asked for; with dropout as many as if
    one were, so that a checkpoint draws the same again. A segment is four times as long as what it shares with the
    next, which takes memory as well.
    """
    _, key, value = tensors
    trains = dropout > 0 or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    if torch.compiler.is_compiling() or not trains:
        return 1
    row = key.element_size() * (key[:, :, 0].numel() + value[:, :, 0].numel())
    size = -(-length // block) * width * row
    longest = length // max(block, 4 * (width - block))
    return max(1, min(size // (CPU_SEGMENT_BYTES if key.device.type == "cpu" else SEGMENT_BYTES), longest))


def _overlapping(padded_BGTD: Tensor, segments: int, step: int) -> Sequence[Tensor]:
    """The keys of each segment: `step`, and what the last block sees beyond."""
    if segments == 1:
        return [padded_BGTD]
    width = padded_BGTD.shape[2] - (segments - 1) * step
    return padded_BGTD.unfold(2, width, step).mT.unbind(2)


def gathered_attention(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    table_BNK: Tensor,
    query_block_BN: Tensor,
    token_BMC: Tensor,
    *,
    causal: bool,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention [B, H, N * C, D] of blocks of queries to the blocks of keys that a table lists.

    Args:
        query_BHTD: heads of N blocks.
        key_BGTD, value_BGTD: heads of M blocks; G divides H.
        table_BNK: [B or 1, N, K], numbers of different key blocks; negative: none.
        query_block_BN: [B or 1, N], which block of the sequence each query block is; used if `causal`.
        token_BMC: bool [B or 1, M, C], True where the key is a token.
        causal: whether a query sees no key at a later place.
        scale: factor on the scores.
        dropout: probability of dropping an attention weight.
    """
    batch, num_heads = query_BHTD.shape[:2]
    groups, num_blocks, block = key_BGTD.shape[1], table_BNK.shape[1], token_BMC.shape[2]
    allowed = tokens_of_blocks(token_BMC, table_BNK).unsqueeze(2)
    if causal:
        within_C = torch.arange(block, device=table_BNK.device)
        key_place = (table_BNK.unsqueeze(-1) * block + within_C).flatten(2).unsqueeze(2)
        allowed = allowed & (key_place <= (query_block_BN.unsqueeze(-1) * block + within_C).unsqueeze(-1))
        allowed = allowed.repeat(1, 1, num_heads // groups, 1)
    out = scaled_dot_product(
        _rows(query_BHTD, num_blocks, groups),
        take_blocks(key_BGTD, table_BNK, block),
        take_blocks(value_BGTD, table_BNK, block),
        allowed.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1),
        scale=scale,
        dropout=dropout,
    )
    return _heads(out, num_blocks, num_heads)


def take_blocks(tensor_BGTD: Tensor, table_BNK: Tensor, block: int) -> Tensor:
    """[B * N, G, K * C, D]: the blocks that a table [B or 1, N, K] lists; any block where its entry is negative.

    The gradient of a block, a sum over all who took it, is computed in float32 at least.
    """
    batch, groups, places, dim = tensor_BGTD.shape
    num_blocks = places // block
    # a row holds one block of one head, so that what is gathered lies as attention reads it
    rows = tensor_BGTD.reshape(batch * groups * num_blocks, -1)
    first_BG = torch.arange(batch * groups, device=rows.device).view(batch, 1, groups, 1) * num_blocks
    index = (table_BNK.clamp(min=0).unsqueeze(2) + first_BG).flatten()
    if rows.requires_grad and rows.dtype in (torch.float16, torch.bfloat16):
        taken = rows.float().index_select(0, index).to(rows.dtype)
    else:
        taken = rows.index_select(0, index)
    return taken.view(batch * table_BNK.shape[1], groups, -1, dim)


def tokens_of_blocks(token_BMC: Tensor, table_BNK: Tensor) -> Tensor:
    """bool [B or 1, N, K * C]: whether there is a token at each place of the blocks that a table lists."""
    sequence = torch.arange(token_BMC.shape[0], device=token_BMC.device).view(-1, 1, 1)
    token_BNKC = token_BMC[sequence, table_BNK.clamp(min=0)]
    return (token_BNKC & (table_BNK >= 0).unsqueeze(-1)).flatten(2)


def _heads(out: Tensor, num_blocks: int, num_heads: int) -> Tensor:
    """[B, H, N * C, D] from [B * N, G, R * C, D], as a view of [B, N * C, H, D]."""
    groups, dim = out.shape[1], out.shape[-1]
    blocks = out.view(-1, num_blocks, groups, num_heads // groups, out.shape[2] * groups // num_heads, dim)
    return blocks.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2).transpose(1, 2)


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
