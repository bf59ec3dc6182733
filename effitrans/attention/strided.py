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

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor
from torch.nn.functional import dropout as drop

from effitrans.attention import reference
from effitrans.attention.blocks import take_blocks, tokens_of_blocks
from effitrans.attention.full import scaled_dot_product
from effitrans.attention.grid import Grid, cut
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype


class Strided(OperatorConfig):
    """The Sparse Transformer's attention.

    >>> Strided(stride=64, pattern="fixed").summary_tokens
    8
    """

    name: ClassVar[str] = "strided"

    pattern: Literal["strided", "fixed"] = "strided"
    """`strided` suits data with a period (images by rows), `fixed` suits text. Default: strided."""
    stride: int = pydantic.Field(default=128, ge=1)
    """Positions of the window, and between the positions of the second set. Default: 128."""
    summary_tokens: int = pydantic.Field(default=8, ge=1)
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
            allowed, bias = self._allowed(grid, mask), {"position_bias": position_bias}
            return scaled_dot_product(query_BHLD, key_BGSD, value_BGSD, allowed, scale=scale, dropout=dropout, **bias)
        dtype, groups = compute_dtype(query_BHLD), key_BGSD.shape[1]
        with torch.autocast(query_BHLD.device.type, enabled=False):
            query = grid.queries(query_BHLD).to(dtype) * scale
            query_BGRNCD = query.unflatten(2, (-1, grid.block)).unflatten(1, (groups, -1))
            key, value = (grid.keys(tensor).to(dtype) for tensor in (key_BGSD, value_BGSD))
            summary = self._columns if self.config.pattern == "strided" else self._summary
            sets = [self._window(key, value, grid, mask.causal), summary(key, value, grid, mask.causal)]
            out_BGRNCD = _attend_to_both(query_BGRNCD, sets, dropout)
        return grid.restore(out_BGRNCD.flatten(3, 4).flatten(1, 2).to(query_BHLD.dtype))

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

    def _is_nearly_dense(self, grid: Grid, mask: AttentionMask) -> bool:
        """Whether the sets hold as many scores as there are pairs, or the fast form does not know where they stand."""
        block = grid.block
        if self.config.pattern == "strided":
            keys = block * (2 if mask.causal else 3) + grid.num_key_blocks
        else:
            keys = block + grid.num_key_blocks * self.config.summary_tokens
        together = mask.kv_offset == 0 and (mask.causal or (mask.q_offset == 0 and mask.q_length == mask.kv_length))
        return not together or mask.q_length * mask.kv_length <= grid.num_query_blocks * block * keys

    def _allowed(self, grid: Grid, mask: AttentionMask) -> Tensor:
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

    def _window(self, key_BGTD: Tensor, value_BGTD: Tensor, grid: Grid, causal: bool) -> "_Set":
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
        taken = (take_blocks(tensor, table_BNK, block) for tensor in (key_BGTD, value_BGTD))
        return _Set("BNGRC", *taken, allowed)

    def _columns(self, key_BGTD: Tensor, value_BGTD: Tensor, grid: Grid, causal: bool) -> "_Set":
        """The second set of the strided pattern: for each place in a block the keys at this place of other blocks."""
        key, value = (
            tensor.unflatten(2, (-1, grid.block)).permute(0, 3, 1, 2, 4).flatten(0, 1)
            for tensor in (key_BGTD, value_BGTD)
        )
        token_BCM = grid.token_BMC.transpose(1, 2)
        allowed = token_BCM[:, :, None, None, None, :] & _elsewhere(grid, causal)[:, None, None, None]
        return _Set("BCGRN", key, value, allowed)

    def _summary(self, key_BGTD: Tensor, value_BGTD: Tensor, grid: Grid, causal: bool) -> "_Set":
        """The second set of the fixed pattern: the last keys of other blocks, the same for all queries of a block."""
        count = self.config.summary_tokens
        key, value = (
            tensor.unflatten(2, (-1, grid.block))[:, :, :, -count:].flatten(2, 3) for tensor in (key_BGTD, value_BGTD)
        )
        token_BK = grid.token_BMC[:, :, -count:].flatten(1, 2)
        elsewhere_BNK = _elsewhere(grid, causal).repeat_interleave(count, dim=-1)
        allowed = token_BK[:, None, None, None, None, :] & elsewhere_BNK[:, None, None, :, None]
        return _Set("BGRNC", key, value, allowed)


def _elsewhere(grid: Grid, causal: bool) -> Tensor:
    """bool [B or 1, N, M]: whether a key block is another one than the query block, and before it if causal."""
    row_BN1 = grid.query_block_BN.unsqueeze(-1)
    column_M = torch.arange(grid.num_key_blocks, device=row_BN1.device)
    return column_M < row_BN1 if causal else column_M != row_BN1


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
