"""The factorized patterns of the Sparse Transformer: a window together with a summary of everything before it.

    strided:  A_i = { j : |i - j| < l }  and  { j : l divides i - j }
    fixed:    A_i = { j : j in the block of i }  and  { j : j among the last c positions of its block }

with stride l (in causal layers j <= i as well), after Child, Gray, Radford and Sutskever, "Generating Long Sequences
with Sparse Transformers" (2019), section 4.3. The two sets are joined in one softmax, the "merged head" of section
5.1, so that no head of a pretrained model loses its neighbourhood, and heads can be pruned freely. Deviations: the
window holds l keys, not l + 1 (the last one is in the second set anyway); every head has the same summary positions;
layers that are not causal look both ways. Positions are counted from a sequence's first token.

Time and memory, forward and backward: strided O(L (l + L / l)), which is O(L sqrt L) for a stride near the root of
the length; fixed O(L (l + c L / l)). The second set of the strided pattern is a column of the sequence written in
rows of l, so both sets are small dense products, whose scores are held. Inputs in which these hold as many scores as
there are pairs take the dense form, and so does a position bias. A decoder keeps all keys and reads them all.

Shapes: B batch, H query heads, G key/value heads, R = H / G, L queries, S keys, D head dimension, N query blocks,
M key blocks, C = l places of a block, K keys of a set.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from effitrans.attention import reference
from effitrans.attention.blocks import take_blocks, tokens_of_blocks
from effitrans.attention.full import scaled_dot_product
from effitrans.attention.grid import BlockGrid, cut
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype
from effitrans.config import Size


class Strided(OperatorConfig):
    """The Sparse Transformer's attention.

    >>> Strided(stride=64, pattern="fixed").summary_tokens
    8
    """

    name: ClassVar[str] = "strided"

    pattern: Literal["strided", "fixed"] = "strided"
    """`strided` suits data with a period (images by rows), `fixed` suits text. Default: strided."""
    stride: Size = 128
    """Positions of the window, and between the positions of the second set. Default: 128."""
    summary_tokens: Size = 8
    """Last positions of a block that all see, in the fixed pattern. Default: 8."""

    @pydantic.model_validator(mode="after")
    def _summary_fits(self) -> Self:
        default = type(self).model_fields["summary_tokens"].default
        if self.pattern == "strided" and self.summary_tokens != default:
            raise ValueError("summary_tokens has no effect with pattern='strided': leave it out")
        if self.pattern == "fixed" and self.summary_tokens > self.stride:
            raise ValueError(f"summary_tokens {self.summary_tokens} must be at most the stride, {self.stride}")
        return self

    def build(self, site: Site) -> "StridedAttention":
        return StridedAttention(self, site)


SEGMENT_BYTES = 32 * 2**20
"""Scores of more bytes than this are computed for some of the query blocks at a time: less memory where no gradient
needs all of them, and no larger pieces than the allocator keeps for the next use."""


class StridedAttention(AttentionOperator):
    """The Sparse Transformer's attention; see the module's docstring."""

    honours = frozenset({"causal", "position_bias"})
    config: Strided

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
        grid = cut(mask, self.config.stride)
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
        out_BHTD = self._factorized(query_BHLD, key_BGSD, value_BGSD, grid, mask, scale, dropout)
        return grid.restore(out_BHTD)

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
        allowed = self._allowed(cut(mask, self.config.stride), mask)
        return reference.softmax_attention(query_BHLD, key_BGSD, value_BGSD, allowed, scale=scale, **extras)

    def _factorized(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        grid: BlockGrid,
        mask: AttentionMask,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """The fast form [B, H, N * C, D]."""
        dtype, causal, at_start = compute_dtype(query_BHLD), mask.causal, mask.q_offset == 0
        with torch.autocast(query_BHLD.device.type, enabled=False):
            query = grid.queries(query_BHLD).to(dtype) * scale
            query_BGRNCD = query.unflatten(2, (-1, grid.block)).unflatten(1, (key_BGSD.shape[1], -1))
            key, value = (grid.keys(tensor).to(dtype).contiguous() for tensor in (key_BGSD, value_BGSD))
            far_key, far_value = self._far(key, grid.block), self._far(value, grid.block)
            outputs, step = [], self._blocks_at_once(grid, query_BGRNCD, causal)
            # a compiled graph has no loop, whose number of rounds would make it one for this length
            for first in [0] if torch.compiler.is_compiling() else range(0, grid.num_query_blocks, step):
                some = replace(grid, query_block_BN=grid.query_block_BN[:, first : first + step])
                seen = min(first + step, grid.num_key_blocks) if causal and at_start else grid.num_key_blocks
                sets = [self._window(key, value, some, causal), self._summary(far_key, far_value, some, causal, seen)]
                outputs.append(_attend_to_both(query_BGRNCD[:, :, :, first : first + step], sets, dropout))
            out_BGRNCD = torch.cat(outputs, dim=3) if len(outputs) > 1 else outputs[0]
        return out_BGRNCD.flatten(3, 4).flatten(1, 2).to(query_BHLD.dtype)

    def _num_keys(self, grid: BlockGrid, causal: bool) -> int:
        """Keys for which a query has scores, those that are masked included."""
        if self.config.pattern == "strided":
            return grid.block * (2 if causal else 3) + grid.num_key_blocks
        return grid.block + grid.num_key_blocks * self.config.summary_tokens

    def _is_nearly_dense(self, grid: BlockGrid, mask: AttentionMask) -> bool:
        """Whether the sets hold as many scores as there are pairs, or the fast form does not know where they stand."""
        in_sets = grid.num_query_blocks * grid.block * self._num_keys(grid, mask.causal)
        together = mask.kv_offset == 0 and (mask.causal or (mask.q_offset == 0 and mask.q_length == mask.kv_length))
        return not together or mask.q_length * mask.kv_length <= in_sets

    def _blocks_at_once(self, grid: BlockGrid, query_BGRNCD: Tensor, causal: bool) -> int:
        """Query blocks whose scores are computed together.

        A causal sequence is taken in quarters at most, of which the first ones do not look at the keys of the last.
        """
        if torch.compiler.is_compiling():
            return grid.num_query_blocks
        step = -(-grid.num_query_blocks // 4) if causal else grid.num_query_blocks
        queries = query_BGRNCD[:, :, :, :1, :, 0].numel()
        bytes_per_block = queries * self._num_keys(grid, causal) * query_BGRNCD.element_size()
        return min(step, max(1, SEGMENT_BYTES // bytes_per_block))

    def _allowed(self, grid: BlockGrid, mask: AttentionMask) -> Tensor:
        """bool [B or 1, 1, L, S]: the dense pattern."""
        config, stride = self.config, self.config.stride
        first_B1 = grid.query_block_BN[:, :1] * stride
        query_BL1, key_B1S = (grid.query_place_BL + first_B1).unsqueeze(-1), grid.key_place_BS.unsqueeze(1)
        if config.pattern == "strided":
            ahead = query_BL1 - key_B1S
            allowed = (ahead.abs() < stride) | (ahead % stride == 0)
        else:
            allowed = (query_BL1 // stride == key_B1S // stride) | (key_B1S % stride >= stride - config.summary_tokens)
        allowed = (allowed & (query_BL1 >= 0) & (key_B1S >= 0)).unsqueeze(1)
        dense = mask.dense()
        return allowed if dense is None else allowed & dense

    def _window(self, key_BGTD: Tensor, value_BGTD: Tensor, grid: BlockGrid, causal: bool) -> "_Set":
        """The first set: for each block the keys of it and, if strided, of its neighbours."""
        block, device = grid.block, key_BGTD.device
        strided = self.config.pattern == "strided"
        left, right = (1, 0 if causal else 1) if strided else (0, 0)
        table_BNK = grid.query_block_BN.unsqueeze(-1) + torch.arange(-left, right + 1, device=device)
        table_BNK = table_BNK.masked_fill(table_BNK >= grid.num_key_blocks, -1)
        key_K = torch.arange(-left * block, (right + 1) * block, device=device)
        behind_CK = torch.arange(block, device=device).unsqueeze(1) - key_K
        near_CK = behind_CK.abs() < block if strided else torch.ones_like(behind_CK, dtype=torch.bool)
        near_CK = near_CK & (behind_CK >= 0) if causal else near_CK
        allowed = tokens_of_blocks(grid.token_BMC, table_BNK)[:, :, None, None, None, :] & near_CK
        key, value = (take_blocks(tensor, table_BNK, block) for tensor in (key_BGTD, value_BGTD))
        return _Set("BNGRC", key, value, allowed)

    def _far(self, tensor_BGTD: Tensor, block: int) -> Tensor:
        """The keys or values of the second set.

        Strided: [B * C, G, M, D], for each place in a block those at this place. Fixed: [B, G, K, D], for all.
        """
        tensor_BGMCD = tensor_BGTD.unflatten(2, (-1, block))
        if self.config.pattern == "strided":
            return tensor_BGMCD.permute(0, 3, 1, 2, 4).flatten(0, 1).contiguous()
        return tensor_BGMCD[:, :, :, -self.config.summary_tokens :].flatten(2, 3)

    def _summary(self, far_key: Tensor, far_value: Tensor, grid: BlockGrid, causal: bool, num_blocks: int) -> "_Set":
        """The second set, from the first `num_blocks` key blocks.

        It leaves out the query's own block, so that it has no key in common with the first set.
        """
        row_BN1, token_BMC = grid.query_block_BN.unsqueeze(-1), grid.token_BMC[:, :num_blocks]
        column_M = torch.arange(num_blocks, device=row_BN1.device)
        elsewhere_BNM = column_M < row_BN1 if causal else column_M != row_BN1
        if self.config.pattern == "strided":
            allowed = token_BMC.transpose(1, 2)[:, :, None, None, None, :] & elsewhere_BNM[:, None, None, None]
            return _Set("BCGRN", far_key[:, :, :num_blocks], far_value[:, :, :num_blocks], allowed)
        count = self.config.summary_tokens
        num_keys = num_blocks * count
        token_BK = token_BMC[:, :, -count:].flatten(1, 2)
        elsewhere_BNK = elsewhere_BNM.repeat_interleave(count, dim=-1)
        allowed = token_BK[:, None, None, None, None, :] & elsewhere_BNK[:, None, None, :, None]
        return _Set("BGRNC", far_key[:, :, :num_keys], far_value[:, :, :num_keys], allowed)


COMMON = "BGRNC"


@dataclass
class _Set:
    """Keys that share of queries see, in a layout that makes their scores a batch of dense products."""

    axes: str
    """The order of the axes of queries and scores; those before G, with B, number the products."""
    key: Tensor
    """[products, G, K, D]."""
    value: Tensor
    """[products, G, K, D]."""
    allowed: Tensor
    """bool, broadcast to the axes and K."""

    def own(self, tensor_BGRNCE: Tensor) -> Tensor:
        """[products, G, queries, E] from the common layout."""
        order = [COMMON.index(axis) for axis in self.axes]
        tensor = tensor_BGRNCE.permute(*order, 5)
        heads = self.axes.index("G")
        return tensor.flatten(heads + 1, 4).flatten(0, heads - 1)

    def common(self, tensor: Tensor, sizes: torch.Size) -> Tensor:
        """The common layout, of which `sizes` are the sizes, from [products, G, queries, E]."""
        own = [sizes[COMMON.index(axis)] for axis in self.axes]
        order = [self.axes.index(axis) for axis in COMMON]
        return tensor.reshape(*own, -1).permute(*order, 5)

    def scores(self, query_BGRNCD: Tensor) -> Tensor:
        """[products, G, queries, K]; minus infinity where a key is not seen."""
        sizes = [query_BGRNCD.shape[COMMON.index(axis)] for axis in self.axes]
        heads, repeats = self.axes.index("G"), [1] * 6
        repeats[self.axes.index("R")] = sizes[self.axes.index("R")]
        own = [1 if axis in "GR" else size for axis, size in zip(self.axes, sizes, strict=True)]
        hidden = (~self.allowed).expand(*own, -1).repeat(repeats).flatten(heads + 1, 4).flatten(0, heads - 1)
        # in place, which spares a copy of what holds most of the memory
        return (self.own(query_BGRNCD) @ self.key.transpose(-1, -2)).masked_fill_(hidden, -torch.inf)


def _attend_to_both(query_BGRNCD: Tensor, sets: list[_Set], dropout: float) -> Tensor:
    """[B, G, R, N, C, D]: one softmax over the keys of all sets; a query that sees none gives zeros."""
    sizes = query_BGRNCD.shape[:5]
    scores = [keys.scores(query_BGRNCD) for keys in sets]
    peaks = [keys.common(part.detach().amax(-1, keepdim=True), sizes) for keys, part in zip(sets, scores, strict=True)]
    peak = torch.maximum(*peaks)
    peak = peak.masked_fill(peak == -torch.inf, 0)
    outputs, totals = [], []
    for keys, part in zip(sets, scores, strict=True):
        weights = part.sub_(keys.own(peak)).exp_()
        totals.append(keys.common(weights.sum(-1, keepdim=True), sizes))
        weights = drop(weights, dropout) if dropout else weights
        outputs.append(keys.common(weights @ keys.value, sizes))
    total = totals[0] + totals[1]
    return (outputs[0] + outputs[1]) / total.masked_fill(total == 0, 1)
