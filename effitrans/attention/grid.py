"""Sequences cut into blocks that are counted from their first token, so that padding moves no boundary.

Without padding on the left the blocks are views of the padded tensors. With it every sequence is shifted so that
its first token begins the first block, and the outputs are shifted back.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension, C positions of a block,
N query blocks, M key blocks, T = N * C or M * C places in blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from effitrans.attention.mask import AttentionMask


@dataclass
class BlockGrid:
    """Where queries and keys stand in blocks."""

    block: int
    """C, positions of a block."""
    query_block_BN: Tensor
    """[B or 1, N]: which block of its sequence each query block is."""
    token_BMC: Tensor
    """bool [B or 1, M, C], True where the key is a token."""
    query_place_BL: Tensor
    """[B or 1, L]: place of each query in the query blocks; negative before the first token."""
    key_place_BS: Tensor
    """[B or 1, S]: place of each key in the key blocks; negative before the first token."""
    query_index_BT: Tensor | None
    """[B, T]: the query at each place, any one where there is none. None: queries are in place but for `before`."""
    key_index_BT: Tensor | None
    """[B, T]: the key at each place. None: keys are in place."""
    before: int
    """Empty places before the first query."""

    @property
    def num_query_blocks(self) -> int:
        return self.query_block_BN.shape[1]

    @property
    def num_key_blocks(self) -> int:
        return self.token_BMC.shape[1]

    def queries(self, query_BHLD: Tensor) -> Tensor:
        """[B, H, N * C, D]; anything where no query stands."""
        if self.query_index_BT is not None:
            return take(query_BHLD, self.query_index_BT)
        after = self.num_query_blocks * self.block - self.before - query_BHLD.shape[2]
        return pad(query_BHLD, (0, 0, self.before, after))

    def keys(self, key_BGSD: Tensor) -> Tensor:
        """[B, G, M * C, D]; anything where `token_BMC` is False."""
        if self.key_index_BT is not None:
            return take(key_BGSD, self.key_index_BT)
        return pad(key_BGSD, (0, 0, 0, self.num_key_blocks * self.block - key_BGSD.shape[2]))

    def restore(self, out_BHTD: Tensor) -> Tensor:
        """[B, H, L, D]: outputs where their queries stood, zeros before the first token."""
        if self.query_index_BT is None:
            return out_BHTD[:, :, self.before : self.before + self.query_place_BL.shape[1]]
        out_BHLD = take(out_BHTD, self.query_place_BL.clamp(min=0))
        return out_BHLD.masked_fill((self.query_place_BL < 0)[:, None, :, None], 0)

    def blocks_of_tokens(self) -> Tensor:
        """[B or 1]: number of blocks up to the last token."""
        number_M = torch.arange(1, self.num_key_blocks + 1, device=self.token_BMC.device)
        return (self.token_BMC.any(-1) * number_M).amax(-1)

    def expand(self, seen_BNM: Tensor) -> Tensor:
        """bool [B or 1, 1, L, S]: a pattern of blocks as one of positions. Nothing before the first token is seen."""
        rows = torch.arange(seen_BNM.shape[0], device=seen_BNM.device)[:, None, None]
        query_BL, key_BS = self.query_place_BL, self.key_place_BS
        query_block, key_block = (place.clamp(min=0) // self.block for place in (query_BL, key_BS))
        seen_BLS = seen_BNM[rows, query_block[:, :, None], key_block[:, None, :]]
        return (seen_BLS & (query_BL >= 0)[:, :, None] & (key_BS >= 0)[:, None, :])[:, None]


def cut(mask: AttentionMask, block: int) -> BlockGrid:
    """The blocks of `block` positions in which the queries and keys of a call stand.

    Args:
        mask: structured. Where its keys do not begin at position 0, only the pattern of blocks can be expanded.
        block: positions of a block.
    """
    device, length, offset = mask.device, mask.q_length, mask.q_offset
    end = mask.kv_offset + mask.kv_length
    num_key_blocks = -(-end // block)
    query_L = torch.arange(length, device=device).unsqueeze(0)
    key_S = torch.arange(mask.kv_offset, end, device=device).unsqueeze(0)
    padding_BS = mask.key_padding()
    if padding_BS is None or not _starts_late(mask):
        start = offset // block
        before = offset - start * block
        num_query_blocks = -(-(before + length) // block)
        token_BS = padding_BS if padding_BS is not None else torch.ones_like(key_S, dtype=torch.bool)
        token_BT = pad(token_BS, (mask.kv_offset, num_key_blocks * block - end))
        numbers_N = start + torch.arange(num_query_blocks, device=device).unsqueeze(0)
        token_BMC = token_BT.unflatten(1, (num_key_blocks, block))
        return BlockGrid(block, numbers_N, token_BMC, before + query_L, key_S, None, None, before)
    first_B1 = first_tokens(mask).unsqueeze(1)
    start_B1 = (offset - first_B1).clamp(min=0) // block
    # from the start of a sequence on, queries begin a block; later ones may begin anywhere in one
    num_query_blocks = -(-length // block) if offset == 0 else -(-(length + block - 1) // block)
    query_place_BL = offset + query_L - first_B1 - start_B1 * block
    query_T = torch.arange(num_query_blocks * block, device=device)
    query_index_BT = (query_T + start_B1 * block + first_B1 - offset).clamp(0, length - 1)
    key_T = torch.arange(num_key_blocks * block, device=device) + first_B1 - mask.kv_offset
    key_index_BT = key_T.clamp(0, mask.kv_length - 1)
    token_BT = padding_BS.gather(1, key_index_BT) & (key_T == key_index_BT)
    return BlockGrid(
        block,
        start_B1 + torch.arange(num_query_blocks, device=device),
        token_BT.unflatten(1, (num_key_blocks, block)),
        query_place_BL,
        key_S - first_B1,
        query_index_BT,
        key_index_BT,
        before=0,
    )


def _starts_late(mask: AttentionMask) -> bool:
    """Whether a sequence may have padding on the left; looked up, except where a graph must serve all inputs."""
    return torch.compiler.is_compiling() or not bool(mask.padding_BT[:, 0].all())  # type: ignore[index]


def first_tokens(mask: AttentionMask) -> Tensor:
    """[B or 1]: position of the first token of each sequence; the number of positions where there is none."""
    if mask.padding_BT is None:
        return torch.zeros(1, dtype=torch.long, device=mask.device)
    token_BT = mask.padding_BT
    return torch.where(token_BT.any(1), token_BT.int().argmax(1), token_BT.shape[1])


def take(tensor_BGSD: Tensor, index_BE: Tensor) -> Tensor:
    """[B, G, E, D]: the rows at `index_BE` [B or 1, E]."""
    batch, groups, _, dim = tensor_BGSD.shape
    return tensor_BGSD.gather(2, index_BE[:, None, :, None].expand(batch, groups, -1, dim))
