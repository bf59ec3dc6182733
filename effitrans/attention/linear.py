"""Linear attention: the softmax kernel replaced by a product of features, so that keys and values sum into a state.

    O_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j)

after Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention" (2020),
eq. 4-5 and 16-20; the feature maps and their papers are in `features`, the chunked form in `chunked`. Time and
memory O(L F D) with F features; while decoding, a causal layer keeps the state alone, F (D + 1) numbers a head.

Decisions: queries and keys are multiplied by the square root of the layer's softmax scale first, so that
`taylor` and `hedgehog` approximate the layer's own softmax. The key mask is applied after the feature map, so
padding enters neither sum. Everything is computed in float32 (float64 for float64). There are no attention
weights to drop, so attention dropout drops whole values instead, one mask for all queries: the expectation is
the same, the normaliser untouched. Long inputs with many features run in segments, which bounds the memory;
when training, a segment's features are computed again in the backward pass.

With `decay_gate` the state forgets: the weight of key j is times g_{j+1} ... g_i at query i (`gate`), in the sum and in
the normaliser, so that the output remains an average of values. A gate orders the keys in time, and is refused where
attention runs in both directions or across sequences.

Shapes: B batch, H query heads, G key/value heads, R = H / G, L queries, S keys, D head dimension, F features.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pydantic
import torch
from torch import Tensor

from effitrans.attention import chunked, reference
from effitrans.attention.features import FeatureMap, FeatureMapName
from effitrans.attention.gate import DecayGate
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype
from effitrans.config import Size, Width
from effitrans.errors import UsageError

SEGMENT_BYTES = 64 * 2**20
"""Features of more bytes than this are computed in segments."""


class Linear(OperatorConfig):
    """Linear attention.

    >>> Linear(feature_map="taylor", feature_dim=16).feature_dim
    16
    """

    name: ClassVar[str] = "linear"

    feature_map: FeatureMapName = "elu"
    """`elu` and `relu` have no parameters; `taylor` is the second-order expansion of exp; `hedgehog` is learned.
    Default: elu."""
    feature_dim: Width | None = None
    """Width of a learned projection of queries and keys before `taylor` or `hedgehog`. Default: no projection for
    taylor, the head dimension for hedgehog."""
    decay_gate: bool = False
    """Whether a learned gate makes causal layers forget. Default: no."""
    chunk_size: Size = 64
    """Positions of a chunk of the causal form; it changes the speed, not the result. Default: 64."""

    @pydantic.model_validator(mode="after")
    def _projection_is_used(self) -> Self:
        if self.feature_dim is not None and self.feature_map in ("elu", "relu"):
            raise ValueError(f"feature_dim has no effect with feature_map={self.feature_map!r}: leave it out")
        return self

    def build(self, site: Site) -> "LinearAttention":
        return LinearAttention(self, site)


class LinearAttention(AttentionOperator):
    """Linear attention; see the module's docstring. What is learned: `query_map`, `key_map` and `gate`."""

    honours = frozenset({"causal", "cross"})
    has_state = True
    config: Linear

    def __init__(self, config: Linear, site: Site) -> None:
        super().__init__(config, site)
        self.query_map = FeatureMap(config.feature_map, site.num_heads, site.head_dim, config.feature_dim)
        self.key_map = FeatureMap(config.feature_map, site.num_key_value_heads, site.head_dim, config.feature_dim)
        self.gate = None
        if config.decay_gate:
            self._refuse_gate(site.causal)
            self.gate = DecayGate(site.num_key_value_heads, site.head_dim)

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
        dtype = compute_dtype(query_BHLD)
        with torch.autocast(query_BHLD.device.type, enabled=False):
            # queries and keys are scaled within the feature maps, which spares a copy of each
            inputs = chunked.scaled_inputs(query_BHLD, key_BGSD, value_BGSD, 1.0, dropout, dtype)
            if not mask.causal:
                self._refuse_gate(causal=False)
                return self._bidirectional(*inputs, mask.key_padding(), scale**0.5).to(query_BHLD.dtype)
            memory = state.get("memory") if state else None
            out, memory = self._causal(*inputs, mask.key_padding(), scale**0.5, memory)
        if state is not None:
            state["memory"] = memory
        return out.to(query_BHLD.dtype)

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
        query, key = (tensor * scale**0.5 for tensor in (query_BHLD, key_BGSD))
        log_decay = None if self.gate is None else self.gate(key, mask.key_padding())
        return reference.linear_attention(self.query_map(query), self.key_map(key), value_BGSD, mask.dense(), log_decay)

    def keep_heads(self, query_heads: Sequence[int], key_value_heads: Sequence[int]) -> None:
        super().keep_heads(query_heads, key_value_heads)
        self.query_map.keep_heads(query_heads)
        self.key_map.keep_heads(key_value_heads)
        if self.gate is not None:
            self.gate.keep_heads(key_value_heads)

    def _refuse_gate(self, causal: bool) -> None:
        if self.config.decay_gate and not causal:
            raise UsageError(
                "attention operator 'linear' with decay_gate needs causal attention, and this layer's is not: leave "
                "decay_gate out"
            )

    def _query_features(self, query_BHLD: Tensor, root: float, groups: int) -> Tensor:
        """[B, G, R, L, F]."""
        return self.query_map(query_BHLD, root).unflatten(1, (groups, -1))

    def _key_features(self, key_BGSD: Tensor, padding_BS: Tensor | None, root: float) -> Tensor:
        """[B, G, S, F], zeros where the key is padding."""
        features = self.key_map(key_BGSD, root)
        return features if padding_BS is None else features.masked_fill(~padding_BS[:, None, :, None], 0)

    def _bidirectional(
        self, query_BHLD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, padding_BS: Tensor | None, root: float
    ) -> Tensor:
        memory = None
        spans = self._segments(key_BGSD.shape[2], value_BGSD)
        for span in spans:
            inputs = (key_BGSD[:, :, span], value_BGSD[:, :, span], _part(padding_BS, span), root, memory)
            memory = chunked.run_segment(self._summarise, *inputs, recompute=len(spans) > 1)
        spans = self._segments(query_BHLD.shape[2], value_BGSD)
        outputs = [
            chunked.run_segment(self._look_up, query_BHLD[:, :, span], root, memory, recompute=len(spans) > 1)
            for span in spans
        ]
        return _joined(outputs).flatten(1, 2)

    def _causal(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        padding_BS: Tensor | None,
        root: float,
        memory: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        length = query_BHLD.shape[2]
        before = key_BGSD.shape[2] - length
        if before > 0:
            past = slice(0, before)
            memory = self._summarise(key_BGSD[:, :, past], value_BGSD[:, :, past], _part(padding_BS, past), root)
        outputs = []
        spans = self._segments(length, value_BGSD)
        for span in spans:
            keys = slice(span.start + before, span.stop + before)
            inputs = (query_BHLD[:, :, span], key_BGSD[:, :, keys], value_BGSD[:, :, keys], _part(padding_BS, keys))
            out, memory = chunked.run_segment(self._advance, *inputs, root, memory, recompute=len(spans) > 1)
            outputs.append(out)
        return _joined(outputs).flatten(1, 2), memory  # type: ignore[return-value]

    def _summarise(
        self,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        padding_BS: Tensor | None,
        root: float,
        memory: Tensor | None = None,
    ) -> Tensor:
        log_decay = None if self.gate is None else self.gate(key_BGSD * root, padding_BS)
        return chunked.summarise(self._key_features(key_BGSD, padding_BS, root), value_BGSD, memory, log_decay)

    def _look_up(self, query_BHLD: Tensor, root: float, memory: Tensor) -> Tensor:
        return chunked.look_up(self._query_features(query_BHLD, root, memory.shape[1]), memory)

    def _advance(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        value_BGLD: Tensor,
        padding_BL: Tensor | None,
        root: float,
        memory: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        key = self._key_features(key_BGLD, padding_BL, root)
        query = self._query_features(query_BHLD, root, key_BGLD.shape[1])
        log_decay = None if self.gate is None else self.gate(key_BGLD * root, padding_BL)
        return chunked.causal(query, key, value_BGLD, memory, self.config.chunk_size, log_decay)

    def _segments(self, length: int, value_BGSD: Tensor) -> list[slice]:
        """Spans of positions whose features fit in `SEGMENT_BYTES`; one span unless the map widens the heads much.

        Under a compiler it is one span too, as the graph must not depend on the length.
        """
        if torch.compiler.is_compiling():
            return [slice(0, length)]
        features, chunk = self.query_map.num_features, self.config.chunk_size
        bytes_per_position = value_BGSD.shape[0] * value_BGSD.shape[1] * features * value_BGSD.element_size()
        size = max(chunk, SEGMENT_BYTES // bytes_per_position // chunk * chunk)
        if features <= 4 * self.site.head_dim or length <= size:
            return [slice(0, length)]
        return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _part(padding_BS: Tensor | None, span: slice) -> Tensor | None:
    return None if padding_BS is None else padding_BS[:, span]


def _joined(outputs: list[Tensor]) -> Tensor:
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)  # cat copies even one
