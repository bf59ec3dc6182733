"""Sliding-window attention with dilation and global tokens.

    O_i = softmax over j in W(i) of (q_i . k_j * scale), applied to v_j,
    W(i) = { j : |i - j| < window * dilation, dilation divides i - j }  and the global tokens

after Beltagy, Peters and Cohan, "Longformer: The Long-Document Transformer" (2020), section 3.1, and Child et
al., "Generating Long Sequences with Sparse Transformers" (2019). Deviations from Longformer: the window counts
the keys on one side, the query's own position included (so the same number means the same reach in a causal
layer, and what transformers calls `sliding_window`); global tokens are the first tokens of a sequence (padding
on the left does not count) and share the projections of the others.

Time and memory O(L (window + num_global_tokens)), forward and backward (see `blocks`). While decoding, a causal
layer keeps the last `(window - 1) * dilation` keys and the global ones, whatever the length of the context.
With a position bias together with dilation or global tokens the dense form is used: the bias is quadratic already.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension, E global tokens.
"""

from dataclasses import replace
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor
from torch.nn.functional import pad

from effitrans.attention import reference
from effitrans.attention.blocks import Band, ExtraKeys, banded_attention
from effitrans.attention.full import scaled_dot_product
from effitrans.attention.grid import first_tokens, take
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State
from effitrans.config import Size
from effitrans.errors import UsageError


class Local(OperatorConfig):
    """Sliding-window attention.

    >>> Local(window=64, num_global_tokens=1).name
    'local'
    """

    name: ClassVar[str] = "local"

    window: Size = 128
    """Keys that a query sees on each side, its own position counted. Default: 128, which is 128 keys in a causal layer
    and 255 in others."""
    dilation: Size = 1
    """Distance in positions between neighbouring keys of the window. Default: 1, no gaps."""
    two_sided: bool = True
    """Whether a query sees keys after it; in a causal layer it never does. Default: yes."""
    num_global_tokens: int = pydantic.Field(default=0, ge=0, le=2**20)
    """The first tokens of a sequence, which see all and are seen by all (as far as causality allows). Default: 0."""

    def build(self, site: Site) -> "LocalAttention":
        return LocalAttention(self, site)


class LocalAttention(AttentionOperator):
    """Sliding-window attention; see the module's docstring."""

    honours = frozenset({"causal", "position_bias", "sliding_window"})
    has_state = True
    config: Local

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
        if state is not None:
            return self._decode(query_BHLD, key_BGSD, value_BGSD, mask, scale, dropout, state)
        band = self._band(mask)
        config = self.config
        block = min(band.block_size(config.num_global_tokens > 0), query_BHLD.shape[2])
        fits = key_BGSD.shape[2] <= block + band.left + band.right
        uneven = config.dilation > 1 or config.num_global_tokens > 0
        if fits or (position_bias is not None and uneven):
            allowed = self._allowed(mask)
            return scaled_dot_product(
                query_BHLD,
                key_BGSD,
                value_BGSD,
                allowed,
                scale=scale,
                dropout=dropout,
                position_bias=position_bias,
            )
        extra = self._global_keys(key_BGSD, value_BGSD, mask) if config.num_global_tokens else None
        out = _dilated(
            query_BHLD,
            key_BGSD,
            value_BGSD,
            band,
            config.dilation,
            scale=scale,
            padding_BS=mask.key_padding(),
            extra=extra,
            position_bias=position_bias,
            dropout=dropout,
        )
        if extra is None:
            return out
        return self._with_global_queries(out, query_BHLD, key_BGSD, value_BGSD, mask, scale, dropout)

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
        allowed = self._allowed(mask)
        return reference.softmax_attention(query_BHLD, key_BGSD, value_BGSD, allowed, scale=scale, **extras)

    def refuse(self, asked: set[str]) -> None:
        super().refuse(asked)
        if "sliding_window" in asked and self.config.num_global_tokens:
            raise UsageError(
                "attention operator 'local' with num_global_tokens > 0 contradicts the model's own sliding window: "
                "use num_global_tokens=0"
            )

    def _band(self, mask: AttentionMask) -> Band:
        """Reach in keys of one residue class: offsets are counted in units of `dilation`."""
        reach = self.config.window - 1
        if mask.window is not None:
            reach = min(reach, (mask.window - 1) // self.config.dilation)
        ahead = reach if self.config.two_sided and not mask.causal else 0
        return Band(left=reach, right=ahead, offset=mask.offset)

    def _allowed(self, mask: AttentionMask) -> Tensor:
        """bool [B or 1, 1, L, S]: the dense pattern."""
        device = mask.device
        positions_S = torch.arange(mask.kv_offset, mask.kv_offset + mask.kv_length, device=device)
        dense = mask.dense()
        allowed = self._pattern(_query_positions(mask), positions_S, mask)
        return allowed if dense is None else allowed & dense

    def _pattern(self, query_positions_L: Tensor, key_positions_S: Tensor, mask: AttentionMask) -> Tensor:
        config = self.config
        return reference.local_pattern(
            query_positions_L,
            key_positions_S,
            config.window,
            two_sided=config.two_sided,
            dilation=config.dilation,
            num_global_tokens=config.num_global_tokens,
            first_B=first_tokens(mask),
        )

    def _global_keys(self, key_BGSD: Tensor, value_BGSD: Tensor, mask: AttentionMask) -> ExtraKeys:
        """The keys of the global tokens, for queries whose window does not hold them."""
        config = self.config
        position_BE = first_tokens(mask)[:, None] + torch.arange(config.num_global_tokens, device=mask.device)
        index_BE = position_BE - mask.kv_offset
        present_BE = (index_BE >= 0) & (index_BE < mask.kv_length)
        index_BE = index_BE.clamp(0, mask.kv_length - 1)
        if (padding_BS := mask.key_padding()) is not None:
            present_BE = present_BE & padding_BS.gather(1, index_BE)
        behind_BLE = _query_positions(mask)[None, :, None] - position_BE[:, None, :]
        in_window = (behind_BLE.abs() < config.window * config.dilation) & (behind_BLE % config.dilation == 0)
        if not config.two_sided or mask.causal:
            in_window = in_window & (behind_BLE >= 0)
        allowed_BLE = present_BE[:, None, :] & ~in_window
        if mask.causal:
            allowed_BLE = allowed_BLE & (behind_BLE >= 0)
        return ExtraKeys(take(key_BGSD, index_BE), take(value_BGSD, index_BE), allowed_BLE)

    def _with_global_queries(
        self,
        out_BHLD: Tensor,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask: AttentionMask,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """Replace the rows of the global tokens by attention to everything."""
        batch, num_heads, length, dim = out_BHLD.shape
        index_BE = (first_tokens(mask)[:, None] - mask.q_offset) + torch.arange(
            self.config.num_global_tokens, device=mask.device
        )
        inside_BE = (index_BE >= 0) & (index_BE < length)
        position_BE = index_BE.clamp(0, length - 1) + mask.offset
        allowed = None
        if mask.causal:
            allowed = (torch.arange(mask.kv_length, device=mask.device) <= position_BE[..., None])[:, None]
        if (padding_BS := mask.key_padding()) is not None:
            seen = padding_BS[:, None, None, :]
            allowed = seen if allowed is None else allowed & seen
        index_BE, inside_BE = index_BE.expand(batch, -1), inside_BE.expand(batch, -1)
        rows = scaled_dot_product(
            take(query_BHLD, index_BE.clamp(0, length - 1)),
            key_BGSD,
            value_BGSD,
            allowed,
            scale=scale,
            dropout=dropout,
        )
        # rows of tokens that are not among these queries go to a row beyond the last, which is cut off
        target_BE = torch.where(inside_BE, index_BE, length)
        index = target_BE[:, None, :, None].expand(-1, num_heads, -1, dim)
        return pad(out_BHLD, (0, 0, 0, 1)).scatter(2, index, rows)[:, :, :length]

    def _decode(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        value_BGLD: Tensor,
        mask: AttentionMask,
        scale: float,
        dropout: float,
        state: State,
    ) -> Tensor:
        """Attention of new queries to new keys and those kept: a prefix that holds the global tokens, and the window.

        The state holds `first_key` (positions 0..P-1), `key` (the last positions), and the same for values.
        """
        empty = key_BGLD[:, :, :0]
        first_key, first_value = state.get("first_key", empty), state.get("first_value", value_BGLD[:, :, :0])
        key = torch.cat([state.get("key", empty), key_BGLD], dim=2)
        value = torch.cat([state.get("value", value_BGLD[:, :, :0]), value_BGLD], dim=2)
        length, end = query_BHLD.shape[2], mask.q_offset + query_BHLD.shape[2]
        num_first, begin = first_key.shape[2], end - key.shape[2]
        if num_first:
            keys, values = torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2)
        else:
            keys, values = key, value
        contiguous = num_first in (0, begin)
        if contiguous:
            seen = mask.for_lengths(length, keys.shape[2])
            out = self.attend(query_BHLD, keys, values, seen, scale=scale, dropout=dropout)
        else:
            positions_S = torch.cat(
                [torch.arange(num_first, device=mask.device), torch.arange(begin, end, device=mask.device)]
            )
            allowed = self._pattern(_query_positions(mask), positions_S, mask)
            allowed = allowed & (positions_S <= _query_positions(mask)[:, None])
            if mask.padding_BT is not None:
                padding_BT = replace(mask, kv_offset=0, kv_length=end, _dense=[]).key_padding()
                allowed = allowed & padding_BT[:, positions_S][:, None, None]  # type: ignore[index]
            out = scaled_dot_product(query_BHLD, keys, values, allowed, scale=scale, dropout=dropout)
        prefix = min(self._prefix(mask, end), end if contiguous else num_first)
        history = min((self.config.window - 1) * self.config.dilation, end - max(prefix, begin))
        state["first_key"], state["first_value"] = _part(keys, 0, prefix), _part(values, 0, prefix)
        state["key"], state["value"] = (_part(tensor, tensor.shape[2] - history, None) for tensor in (key, value))
        return out

    def _prefix(self, mask: AttentionMask, end: int) -> int:
        """Number of leading positions that hold the global tokens of every sequence."""
        if mask.padding_BT is None or self.config.num_global_tokens == 0:
            return self.config.num_global_tokens
        return min(int(first_tokens(mask).max()) + self.config.num_global_tokens, end)


def _part(tensor_BGSD: Tensor, start: int, stop: int | None) -> Tensor:
    """A slice to keep; copied where it would hold on to a much larger tensor."""
    part = tensor_BGSD[:, :, start:stop]
    return part.clone() if 2 * part.shape[2] < tensor_BGSD.shape[2] else part


def _query_positions(mask: AttentionMask) -> Tensor:
    return torch.arange(mask.q_offset, mask.q_offset + mask.q_length, device=mask.device)


def _dilated(
    query_BHLD: Tensor,
    key_BGSD: Tensor,
    value_BGSD: Tensor,
    band: Band,
    dilation: int,
    *,
    scale: float,
    padding_BS: Tensor | None,
    extra: ExtraKeys | None,
    position_bias: Tensor | None,
    dropout: float,
) -> Tensor:
    """Banded attention in each residue class of positions modulo `dilation`, the classes side by side in the batch."""
    if dilation == 1:
        return banded_attention(
            query_BHLD,
            key_BGSD,
            value_BGSD,
            band,
            scale=scale,
            padding_BS=padding_BS,
            extra=extra,
            position_bias=position_bias,
            dropout=dropout,
        )
    batch, length = query_BHLD.shape[0], query_BHLD.shape[2]
    num_keys = key_BGSD.shape[2]
    before = band.offset % dilation
    after = -(before + length) % dilation
    more_keys = -num_keys % dilation
    if padding_BS is None:
        padding_BS = torch.ones(batch, num_keys, dtype=torch.bool, device=key_BGSD.device)
    if extra is not None:
        allowed_BLE = pad(extra.allowed_BLE.expand(batch, -1, -1), (0, 0, before, after))
        extra = ExtraKeys(
            extra.key_BGED.repeat_interleave(dilation, 0),
            extra.value_BGED.repeat_interleave(dilation, 0),
            _split(allowed_BLE[:, None], dilation)[:, 0],
        )
    out = banded_attention(
        _split(pad(query_BHLD, (0, 0, before, after)), dilation),
        _split(pad(key_BGSD, (0, 0, 0, more_keys)), dilation),
        _split(pad(value_BGSD, (0, 0, 0, more_keys)), dilation),
        Band(band.left, band.right, band.offset // dilation),
        scale=scale,
        padding_BS=_split(pad(padding_BS, (0, more_keys))[:, None, :, None], dilation)[:, 0, :, 0],
        extra=extra,
        dropout=dropout,
    )
    out = out.unflatten(0, (batch, dilation)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    return out[:, :, before : before + length]


def _split(tensor_BHLD: Tensor, dilation: int) -> Tensor:
    """[B * dilation, H, L / dilation, D]."""
    return tensor_BHLD.unflatten(2, (-1, dilation)).permute(0, 3, 1, 2, 4).flatten(0, 1)
