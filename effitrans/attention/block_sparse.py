"""Block-sparse attention: blocks of queries attend to a window of blocks, the first blocks, and random ones.

    O_i = softmax over j in blocks N(b(i)) of (q_i . k_j * scale), applied to v_j,      b(i) the block of position i,
    N(b) = { c : |b - c| < window } and the global blocks and the random blocks of b;   N(b) = all for a global b

after Zaheer et al., "Big Bird: Transformers for Longer Sequences" (2020), section 2 and appendix D. Deviations:
the global blocks are the first ones of a sequence (BigBird's ITC with extra blocks at the end as well), all heads
draw the same random blocks, and causal layers, which BigBird leaves dense, see the same pattern as far as it lies
in the past. Blocks are counted from a sequence's first token. `layout` replaces the pattern by any list of blocks.

The random blocks of a query block depend on the seed, its number, and how many blocks there are to draw from: those
before its window in a causal layer, so that they are the same whatever the length of the input and while decoding;
all outside its window in others, drawn by jump consistent hashing (Lamping and Veach, 2014), so that a sequence
that grows by a block keeps its random blocks or puts the new one in their place. Two draws may meet in one block.

Time and memory O(L K C), K blocks of C keys a query block, forward and backward; global queries and wide rows of a
layout cost what they see. Inputs in which a block sees nearly all take the dense form, and so does a position bias,
which is quadratic already. A decoder keeps all keys: any of them may be a random one.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension, N query blocks, M key blocks,
K key blocks that a query block sees, J random draws.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pydantic
import torch
from torch import Tensor

from effitrans.attention import reference
from effitrans.attention.blocks import gathered_attention
from effitrans.attention.full import scaled_dot_product
from effitrans.attention.grid import BlockGrid, cut
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State
from effitrans.config import Seed, Size
from effitrans.errors import UsageError


class BlockSparse(OperatorConfig):
    """Block-sparse attention.

    >>> BlockSparse(block_size=32, num_random_blocks=1).name
    'block_sparse'
    """

    name: ClassVar[str] = "block_sparse"

    block_size: Size = 64
    """Positions of a block. Default: 64."""
    window_blocks: Size = 2
    """Blocks that a block sees on each side, itself counted. Default: 2, which is 2 blocks in a causal layer and 3 in
    others."""
    num_global_blocks: int = pydantic.Field(default=2, ge=0, le=2**20)
    """The first blocks of a sequence, which see all and are seen by all (as far as causality allows). Default: 2."""
    num_random_blocks: int = pydantic.Field(default=3, ge=0, le=2**20)
    """Draws of further blocks for each block. Default: 3."""
    seed: Seed = 0
    """Seed of the random blocks. Default: 0."""
    layout: tuple[tuple[int, ...], ...] | None = None
    """The numbers of the blocks that each block sees, for instance `[[0], [0, 1], [0, 2]]`; it replaces window, global
    and random blocks. Longer inputs are refused. Default: none."""

    @pydantic.model_validator(mode="after")
    def _layout_stands_alone(self) -> Self:
        if self.layout is None:
            return self
        fields = type(self).model_fields
        pattern = ("window_blocks", "num_global_blocks", "num_random_blocks", "seed")
        if ignored := [name for name in pattern if getattr(self, name) != fields[name].default]:
            raise ValueError(f"{', '.join(ignored)}: without effect beside a layout, leave out one or the other")
        for number, row in enumerate(self.layout):
            if not row or len(set(row)) < len(row) or not 0 <= min(row) <= max(row) < len(self.layout):
                raise ValueError(
                    f"layout row {number} is {list(row)}: expected different block numbers from 0 to "
                    f"{len(self.layout) - 1}, at least one"
                )
        return self

    def seeded(self, seed: int) -> Self:
        return self if self.layout is not None else super().seeded(seed)

    def build(self, site: Site) -> "BlockSparseAttention":
        return BlockSparseAttention(self, site)


@dataclass
class _Part:
    """Query blocks that see the same number of key blocks."""

    rows_N: Tensor
    """Their indices among the query blocks."""
    table_BNK: Tensor
    """[B or 1, N, K], the key blocks that they see; negative: none."""


SEGMENT_BYTES = 16 * 2**20
"""Without gradients, keys of more bytes than this are copied and used in turns, which a cache and an allocator like."""


def _split(parts: list[_Part], bytes_per_block: int) -> list[_Part]:
    """The parts in pieces whose gathered keys fit in `SEGMENT_BYTES`; whole where gradients need all copies at once."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return parts
    pieces = []
    for part in parts:
        rows = max(1, SEGMENT_BYTES // (bytes_per_block * part.table_BNK.shape[2]))
        tables = part.table_BNK.split(rows, dim=1)
        pieces += [_Part(*piece) for piece in zip(part.rows_N.split(rows), tables, strict=True)]
    return pieces


class BlockSparseAttention(AttentionOperator):
    """Block-sparse attention; see the module's docstring."""

    honours = frozenset({"causal", "position_bias"})
    config: BlockSparse

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
        position_bias: Tensor | None = None,
        **extras: Any,
    ) -> Tensor:
        self._check_length(mask)
        grid = cut(mask, self.config.block_size)
        if position_bias is not None or self._is_nearly_dense(grid, mask):
            return scaled_dot_product(
                query_BHLD,
                key_BGSD,
                value_BGSD,
                self._allowed(grid, mask),
                scale=scale,
                dropout=dropout,
                position_bias=position_bias,
            )
        query = grid.queries(query_BHLD)
        key, value = (grid.keys(tensor).contiguous() for tensor in (key_BGSD, value_BGSD))
        query_blocks = query.unflatten(2, (grid.num_query_blocks, grid.block))
        parts = _split(
            self._parts(grid, mask), grid.block * key_BGSD.numel() // key_BGSD.shape[2] * key_BGSD.element_size()
        )
        outputs = [
            gathered_attention(
                query_blocks.index_select(2, part.rows_N).flatten(2, 3),
                key,
                value,
                part.table_BNK,
                grid.query_block_BN.index_select(1, part.rows_N),
                grid.token_BMC,
                causal=mask.causal,
                scale=scale,
                dropout=dropout,
            ).unflatten(2, (-1, grid.block))
            for part in parts
        ]
        out = torch.cat(outputs, dim=2)
        if self.config.layout is not None:
            out = out.index_select(2, torch.cat([part.rows_N for part in parts]).argsort())
        return grid.restore(out.flatten(2, 3))

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
        allowed = self._allowed(cut(mask, self.config.block_size), mask)
        return reference.softmax_attention(query_BHLD, key_BGSD, value_BGSD, allowed, scale=scale, **extras)

    def _check_length(self, mask: AttentionMask) -> None:
        config, end = self.config, mask.kv_offset + mask.kv_length
        if config.layout is not None and end > len(config.layout) * config.block_size:
            raise UsageError(
                f"attention operator 'block_sparse' has a layout of {len(config.layout)} blocks of "
                f"{config.block_size} positions, and the input has {end} positions, padding included: shorten the "
                "input or give a larger layout"
            )

    def _is_nearly_dense(self, grid: BlockGrid, mask: AttentionMask) -> bool:
        """Whether the blocks hold all pairs of query and key, or the fast form does not know where they stand."""
        config = self.config
        seen = config.window_blocks * (1 if mask.causal else 2) + config.num_global_blocks + config.num_random_blocks
        if config.layout is not None:
            seen = max(1, sum(map(len, config.layout)) // len(config.layout))
        in_blocks = grid.num_query_blocks * seen * config.block_size**2
        together = mask.kv_offset == 0 and (mask.causal or (mask.q_offset == 0 and mask.q_length == mask.kv_length))
        return not together or mask.q_length * mask.kv_length <= in_blocks

    def _allowed(self, grid: BlockGrid, mask: AttentionMask) -> Tensor:
        """bool [B or 1, 1, L, S]: the dense pattern."""
        allowed, dense = grid.expand(self._pattern(grid, mask)), mask.dense()
        return allowed if dense is None else allowed & dense

    def _pattern(self, grid: BlockGrid, mask: AttentionMask) -> Tensor:
        """bool [B or 1, N, M]: which block sees which, before causality and padding."""
        config, row_BN1 = self.config, grid.query_block_BN.unsqueeze(-1)
        column_M = torch.arange(grid.num_key_blocks, device=row_BN1.device)
        if config.layout is not None:
            return (self._layout_rows(grid).unsqueeze(-1) == column_M).any(2)
        seen_BNM = ((row_BN1 - column_M).abs() < config.window_blocks) | (column_M < config.num_global_blocks)
        if not mask.causal:
            seen_BNM = seen_BNM | (row_BN1 < config.num_global_blocks)
        return seen_BNM | (self._random(grid, mask.causal).unsqueeze(-1) == column_M).any(2)

    def _parts(self, grid: BlockGrid, mask: AttentionMask) -> list[_Part]:
        """What each query block sees, as tables."""
        rows_N = torch.arange(grid.num_query_blocks, device=grid.query_block_BN.device)
        if self.config.layout is not None:
            return self._layout_parts(grid, rows_N, self.config.layout, at_start=mask.q_offset == 0)
        num_global = min(self.config.num_global_blocks, grid.num_key_blocks)
        table_BNK = self._table(grid, mask.causal)
        if mask.causal or num_global == 0:
            return [_Part(rows_N, table_BNK)]
        everything = torch.arange(grid.num_key_blocks, device=rows_N.device).expand(1, num_global, -1)
        return [_Part(rows_N[:num_global], everything), _Part(rows_N[num_global:], table_BNK[:, num_global:])]

    def _table(self, grid: BlockGrid, causal: bool) -> Tensor:
        """[B or 1, N, K]: global blocks, the window, random blocks; each block once."""
        config, row_BN1 = self.config, grid.query_block_BN.unsqueeze(-1)
        device = row_BN1.device
        reach = config.window_blocks - 1
        window = row_BN1 + torch.arange(-reach, 1 if causal else reach + 1, device=device)
        window = window.masked_fill((window < config.num_global_blocks) | (window >= grid.num_key_blocks), -1)
        first = torch.arange(min(config.num_global_blocks, grid.num_key_blocks), device=device)
        draws = self._random(grid, causal)
        again = (draws.unsqueeze(-1) == draws.unsqueeze(-2)).tril(-1).any(-1)
        parts = (first.view(1, 1, -1), window, draws.masked_fill(again, -1))
        return torch.cat([part.expand(*draws.shape[:2], -1) for part in parts], dim=-1)

    def _random(self, grid: BlockGrid, causal: bool) -> Tensor:
        """[B or 1, N, J]: random blocks that are neither global nor in the window; -1 where there is none."""
        config, row_BN = self.config, grid.query_block_BN
        after_window = (row_BN + config.window_blocks).clamp(min=config.num_global_blocks)
        before = (row_BN - config.window_blocks + 1 - config.num_global_blocks).clamp(min=0)
        behind = torch.zeros_like(before)
        if not causal:
            total_B1 = grid.blocks_of_tokens().unsqueeze(-1)
            before = torch.minimum(before, (total_B1 - config.num_global_blocks).clamp(min=0))
            behind = (total_B1 - after_window).clamp(min=0)
        draws = consistent_draws(config.seed, row_BN, config.num_random_blocks, before + behind)
        before, after_window = before.unsqueeze(-1), after_window.unsqueeze(-1)
        blocks = torch.where(draws < before, draws + config.num_global_blocks, draws - before + after_window)
        return blocks.masked_fill(draws < 0, -1)

    def _layout_rows(self, grid: BlockGrid) -> Tensor:
        """[B or 1, N, K]: the row of each query block."""
        last = len(self.config.layout or ()) - 1
        return self._layout(grid, range(last + 1))[grid.query_block_BN.clamp(max=last)]

    def _layout(self, grid: BlockGrid, rows: range | list[int]) -> Tensor:
        """[rows, K]: rows of the layout; -1 in place of blocks that are not there."""
        layout = self.config.layout or ()
        width = max(len(layout[row]) for row in rows)
        table = torch.tensor([[*layout[row], *[-1] * (width - len(layout[row]))] for row in rows])
        table = table.to(grid.query_block_BN.device)
        return table.masked_fill(table >= grid.num_key_blocks, -1)

    def _layout_parts(
        self, grid: BlockGrid, rows_N: Tensor, layout: tuple[tuple[int, ...], ...], at_start: bool
    ) -> list[_Part]:
        """The layout's rows in groups whose widths differ by less than a factor of two."""
        if not at_start or torch.compiler.is_compiling():  # groups would differ from length to length
            return [_Part(rows_N, self._layout_rows(grid))]
        widths: dict[int, list[int]] = {}
        for row in range(grid.num_query_blocks):
            widths.setdefault(len(layout[row]).bit_length(), []).append(row)
        return [
            _Part(torch.tensor(rows, device=rows_N.device), self._layout(grid, rows).unsqueeze(0))
            for rows in widths.values()
        ]


STEPS = 20
"""Jumps followed by `consistent_draws`; their number is about ln(count), so this is ample for millions."""
_BITS = 2**32 - 1


def consistent_draws(seed: int, number_BN: Tensor, draws: int, count_BN: Tensor) -> Tensor:
    """[B, N, J]: for each number `draws` uniform draws from 0 to `count` - 1; -1 where the count is 0.

    They depend on the seed, the number and the index of the draw. When the count grows by one, a draw stays, or
    with probability 1 / count becomes the new value.

    Args:
        seed: at least 0.
        number_BN: int [B or 1, N], what the draws are for.
        draws: J, draws for each.
        count_BN: int [B or 1, N], how many values there are.

    >>> consistent_draws(0, torch.tensor([[5]]), 3, torch.tensor([[1]])).tolist()
    [[[0, 0, 0]]]
    """
    device = number_BN.device
    hashed = _hash(number_BN ^ _hash(seed & _BITS))
    hashed = _hash(hashed.unsqueeze(-1) ^ torch.arange(draws, device=device))
    steps = torch.arange(1, STEPS + 1, device=device) * 0x9E3779B9
    uniform = (_hash((hashed.unsqueeze(-1) + steps) & _BITS) + 1).double() / 2**32
    count = count_BN.unsqueeze(-1)
    chosen = torch.where(count > 0, 0.0, -1.0).expand(-1, -1, draws).double()
    value = torch.zeros_like(chosen)
    for step in range(STEPS):
        value = ((value + 1) / uniform[..., step]).floor()
        chosen = torch.where(value < count, value, chosen)
    return chosen.long()


def _hash(bits: Any) -> Any:
    """A mixing function on 32-bit integers, an int or a tensor of them.

    The multipliers are below 2**31, so that no product overflows int64.
    """
    bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & _BITS
    bits = ((bits ^ (bits >> 15)) * 0x735A2D97) & _BITS
    return bits ^ (bits >> 15)
