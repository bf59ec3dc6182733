"""Softmax attention within a window and linear attention outside of it, under one normaliser.

    O_i = sum_j w_ij v_j / sum_j w_ij,    W(i) = { j : |i - j| < window }

lolcats (Zhang et al., "LoLCATs: On Low-Rank Linearizing of Large Language Models" (2025), section 3.3, eq. 6):

    w_ij = g_h exp(q_i . k_j * scale - c_i)   for j in W(i),   c_i = max over j in W(i) of q_i . k_j * scale
    w_ij = phi(q_i) . phi'(k_j)               elsewhere

with learned Hedgehog maps phi, phi' a head and a learned mixing factor g_h in (0, 1), a sigmoid that starts at 1/2.
c_i is part of the formula, not only a safeguard: it does not cancel, and gets its gradient.

scatterbrain (Chen et al., "Scatterbrain: Unifying Sparse and Low-rank Attention Approximation" (2021), section 4.1):

    w_ij = exp(q_i . k_j * scale)             for j in W(i)
    w_ij = phi(q_i) . phi(k_j)                elsewhere, with phi the random features of Performer

which is the low-rank estimate of all scores plus a sparse correction that makes those on the support exact. Nothing
is learned. Deviations: the window is defined for both directions; Scatterbrain's support is the window instead of
hashed buckets; its estimate is left out on the support rather than added and subtracted, which avoids cancellation.
Attention dropout drops whole values, as in `linear`.

Time and memory O(L (window + F) D) with F features, in the blocks of `weighted`. Where the input is hardly longer
than what a block sees (`SHORT` windows), lolcats is computed as it is written, all weights in one matrix. While
decoding, a causal layer keeps the last window - 1 keys and values, and one memory of F (D + 1) numbers a head for all
keys before them.

Shapes: B batch, H query heads, G key/value heads, R = H / G, L queries, S keys, D head dimension, F features,
X = B G, N blocks of C queries, W keys around a block.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from effitrans.attention import reference, weighted
from effitrans.attention.chunked import scaled_inputs
from effitrans.attention.features import FeatureMap, RandomFeatures
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype
from effitrans.attention.weighted import EMPTY, Blocks, Keys, Memory, row_peak
from effitrans.config import Seed, Size, Width

SHORT = 4
"""Windows, of 16 positions at least, up to which all weights in one matrix take less time than blocks."""


class Hybrid(OperatorConfig):
    """Exact attention nearby, an approximation of it further away.

    >>> Hybrid(window=32, variant="scatterbrain", num_features=128).name
    'hybrid'
    """

    name: ClassVar[str] = "hybrid"

    window: Size = 64
    """Keys on each side that are attended exactly, the query's own position counted. Default: 64."""
    variant: Literal["lolcats", "scatterbrain"] = "lolcats"
    """How the keys outside the window are weighted: by learned Hedgehog features and a mixing factor, or by random
    features that estimate the softmax. Default: lolcats."""
    feature_dim: Width | None = None
    """lolcats: width of the learned maps, which give twice as many features. Default: the head dimension."""
    num_features: Width | None = None
    """scatterbrain: number of random features. Default: 256."""
    seed: Seed | None = None
    """scatterbrain: seed of the random features. Default: 0."""

    @pydantic.model_validator(mode="after")
    def _settings_belong_to_the_variant(self) -> Self:
        foreign = {"lolcats": ("num_features", "seed"), "scatterbrain": ("feature_dim",)}[self.variant]
        if given := [name for name in foreign if getattr(self, name) is not None]:
            raise ValueError(f"{', '.join(given)} has no effect with variant={self.variant!r}: leave it out")
        return self

    def seeded(self, seed: int) -> Self:
        return self if self.variant == "lolcats" else super().seeded(seed)

    def build(self, site: Site) -> "HybridAttention":
        return (LolcatsAttention if self.variant == "lolcats" else ScatterbrainAttention)(self, site)


class HybridAttention(AttentionOperator):
    """What both variants share: the window, the blocks around it, and the memory of what is further away."""

    has_state = True
    config: Hybrid

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
        **extras: Any,
    ) -> Tensor:
        if state is None and self._is_short(mask):
            with torch.autocast(query_BHLD.device.type, enabled=False):
                inputs = scaled_inputs(query_BHLD, key_BGSD, value_BGSD, scale, dropout, compute_dtype(query_BHLD))
                return self._written_out(*inputs, mask).to(query_BHLD.dtype)
        if state:
            key_BGSD = torch.cat([state["key"], key_BGSD], dim=2)
            value_BGSD = torch.cat([state["value"], value_BGSD], dim=2)
            mask = mask.for_lengths(query_BHLD.shape[2], key_BGSD.shape[2])
        reach = self.config.window - 1
        memory = Memory(state["memory"], state["peak"]) if state and "memory" in state else None
        with torch.autocast(query_BHLD.device.type, enabled=False):
            query, key, value = scaled_inputs(
                query_BHLD, key_BGSD, value_BGSD, scale, dropout, compute_dtype(query_BHLD)
            )
            keys = self._keys(key, value, mask.key_padding())
            beyond = max(mask.offset - reach, 0) if mask.causal else 0
            near = keys
            if beyond:
                memory = weighted.summarise(keys.part(0, beyond), memory)
                near = keys.part(beyond)
            out = self._windowed(query, near, mask, memory, history=max(mask.offset - beyond, 0))
            if state is not None:
                last = max(keys.length - reach, 0)
                if last > beyond:
                    memory = weighted.summarise(keys.part(beyond, last), memory)
                state["key"], state["value"] = (tensor[:, :, last:].clone() for tensor in (key_BGSD, value_BGSD))
                if memory is not None:
                    state["memory"], state["peak"] = memory.sums_BGFE, memory.peak_BG
        return out.flatten(1, 2).to(query_BHLD.dtype)

    def _windowed(
        self, query_BHLD: Tensor, keys: Keys, mask: AttentionMask, memory: Memory | None, history: int
    ) -> Tensor:
        query_BGRLD = query_BHLD.unflatten(1, (keys.features_BGSF.shape[1], -1))
        features, log = self._query_features(query_BHLD)
        reach = self.config.window - 1
        return weighted.attend(
            features.unflatten(1, query_BGRLD.shape[1:3]),
            keys,
            lambda blocks: self._mix(blocks, *self._split(blocks, mask.causal)),
            chunk=min(128, max(32, 1 << reach.bit_length())),
            memory=memory,
            history=history,
            before=reach,
            after=None if mask.causal else reach,
            query_log_BGRL=None if log is None else log.unflatten(1, query_BGRLD.shape[1:3]),
            query_BGRLD=query_BGRLD,
        )

    def _split(self, blocks: Blocks, causal: bool) -> tuple[Tensor, Tensor]:
        """Scores, and log weights of the features, each `EMPTY` where the other counts."""
        assert blocks.scores is not None
        inside = blocks.ahead_CW.abs() < self.config.window
        outside = ~inside
        if causal:
            inside, outside = inside & (blocks.ahead_CW <= 0), outside & (blocks.ahead_CW <= 0)
        present = blocks.key_log > EMPTY / 2
        return blocks.scores.masked_fill(~(inside & present), EMPTY), blocks.key_log.masked_fill(~outside, EMPTY)

    def _is_short(self, mask: AttentionMask) -> bool:
        """Whether the weights are best computed as they are written."""
        return False

    @abstractmethod
    def _keys(self, key_BGSD: Tensor, value_BGSD: Tensor, padding_BS: Tensor | None) -> Keys:
        """The keys as features and their log weights, with the values."""

    @abstractmethod
    def _query_features(self, query_BHLD: Tensor) -> tuple[Tensor, Tensor | None]:
        """phi(q) [B, H, L, F] and a [B, H, L], or None where it is zero."""

    @abstractmethod
    def _mix(self, blocks: Blocks, scores: Tensor, key_log: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Numerators and normalisers of a block, from its scores and its features."""

    @abstractmethod
    def _reference_weights(self, query_BHLD: Tensor, key_BGSD: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        """The matrix of weights [B, H, L, S], written out."""

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
        return self._written_out(query_BHLD * scale**0.5, key_BGSD * scale**0.5, value_BGSD, mask)

    def _written_out(self, query_BHLD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, mask: AttentionMask) -> Tensor:
        """The output for queries and keys that are scaled, from the matrix of weights."""
        positions_L = torch.arange(mask.q_offset, mask.q_offset + mask.q_length, device=mask.device)
        positions_S = torch.arange(mask.kv_offset, mask.kv_offset + mask.kv_length, device=mask.device)
        inside = reference.local_pattern(positions_L, positions_S, self.config.window)
        outside = ~inside
        if (allowed := mask.dense()) is not None:
            inside, outside = inside & allowed, outside & allowed
        weights = self._reference_weights(query_BHLD, key_BGSD, inside, outside)
        total = weights.sum(-1, keepdim=True)
        return weights / total.masked_fill(total == 0, 1) @ reference.repeat_heads(value_BGSD, query_BHLD.shape[1])


class LolcatsAttention(HybridAttention):
    """A learned linear remainder. The parameters are `query_map`, `key_map` and `mixing` [H], g before the sigmoid."""

    def __init__(self, config: Hybrid, site: Site) -> None:
        super().__init__(config, site)
        self.query_map = FeatureMap("hedgehog", site.num_heads, site.head_dim, config.feature_dim)
        self.key_map = FeatureMap("hedgehog", site.num_key_value_heads, site.head_dim, config.feature_dim)
        self.mixing = nn.Parameter(torch.zeros(site.num_heads))

    def keep_heads(self, query_heads: Sequence[int], key_value_heads: Sequence[int]) -> None:
        super().keep_heads(query_heads, key_value_heads)
        self.query_map.keep_heads(query_heads)
        self.key_map.keep_heads(key_value_heads)
        self.mixing = nn.Parameter(self.mixing.detach()[list(query_heads)].clone(), self.mixing.requires_grad)

    def _is_short(self, mask: AttentionMask) -> bool:
        return mask.kv_length <= SHORT * max(self.config.window, 16)

    def _keys(self, key_BGSD: Tensor, value_BGSD: Tensor, padding_BS: Tensor | None) -> Keys:
        log = key_BGSD.new_zeros(key_BGSD.shape[:3])
        return weighted.make_keys(self.key_map(key_BGSD), log, value_BGSD, padding_BS, key_BGSD)

    def _query_features(self, query_BHLD: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.query_map(query_BHLD), None

    def _mix(self, blocks: Blocks, scores: Tensor, key_log: Tensor) -> tuple[Tensor, list[Tensor]]:
        largest = scores.amax(-1, keepdim=True)
        largest = largest.masked_fill(largest < EMPTY / 2, 0)
        factor = torch.sigmoid(self.mixing.to(scores.dtype)).view(-1, scores.shape[2])
        factor = factor[blocks.sequence_X % factor.shape[0]][:, None, :, None, None]
        remainder = blocks.products.masked_fill(key_log < EMPTY / 2, 0)
        return factor * torch.exp(scores - largest) + remainder, [torch.ones_like(peak) for peak in blocks.peaks]

    def _reference_weights(self, query_BHLD: Tensor, key_BGSD: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        num_heads = query_BHLD.shape[1]
        scores = query_BHLD @ reference.repeat_heads(key_BGSD, num_heads).transpose(-1, -2)
        scores = scores.masked_fill(~inside, -torch.inf)
        largest = scores.amax(-1, keepdim=True)
        near = torch.sigmoid(self.mixing)[:, None, None] * torch.exp(scores - largest.masked_fill(largest.isinf(), 0))
        key_features = reference.repeat_heads(self.key_map(key_BGSD), num_heads)
        return near + (self.query_map(query_BHLD) @ key_features.transpose(-1, -2)).masked_fill(~outside, 0)


class ScatterbrainAttention(HybridAttention):
    """A remainder estimated by random features, `features`."""

    def __init__(self, config: Hybrid, site: Site) -> None:
        super().__init__(config, site)
        self.features = RandomFeatures(config.num_features or 256, site.head_dim, config.seed or 0)

    def _keys(self, key_BGSD: Tensor, value_BGSD: Tensor, padding_BS: Tensor | None) -> Keys:
        features, log = self.features(key_BGSD)
        return weighted.make_keys(features, log, value_BGSD, padding_BS, key_BGSD)

    def _query_features(self, query_BHLD: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.features(query_BHLD)

    def _mix(self, blocks: Blocks, scores: Tensor, key_log: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert blocks.query_log is not None
        remote = key_log + blocks.query_log
        far = [peak + blocks.query_log for peak in blocks.peaks]
        largest = row_peak(torch.maximum(scores.detach(), remote), *far)
        weights = torch.exp(scores - largest) + blocks.products * torch.exp(remote - largest)
        return weights, [torch.exp(peak - largest) for peak in far]

    def _reference_weights(self, query_BHLD: Tensor, key_BGSD: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        key_BHSD = reference.repeat_heads(key_BGSD, query_BHLD.shape[1])
        scores = (query_BHLD @ key_BHSD.transpose(-1, -2)).masked_fill(~inside, -torch.inf)
        estimate = self.features.plain(query_BHLD) @ self.features.plain(key_BHSD).transpose(-1, -2)
        return torch.exp(scores) + estimate.masked_fill(~outside, 0)
