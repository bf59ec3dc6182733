"""Performer: softmax attention estimated by positive orthogonal random features (FAVOR+).

    O_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j),   E[phi(q) . phi(k)] = exp(q . k * scale)

after Choromanski et al., "Rethinking Attention with Performers" (2021), eq. 4-7 and algorithm 1; the features are in
`features`. The error of the estimate grows fast with the length of queries and keys. Deviations: the exponentials are
kept relative to a maximum a query, and for keys to one over the tokens of their own sequence (a running one in causal
attention), so the result depends neither on the rest of the batch nor on padding nor on later keys; and nothing is
added to the features, so an exact rescaling is all that this does. Where all scores of a query are far below zero
(some -300), float32 cannot hold its sums, and the output is zero. One projection serves all heads. Attention dropout
drops whole values, as in `linear`.

Time and memory O(L F D) with F features; while decoding, a causal layer keeps F (D + 1) numbers a head.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension, F features.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from effitrans.attention import chunked, reference, weighted
from effitrans.attention.chunked import run_segment
from effitrans.attention.features import RandomFeatures
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype
from effitrans.attention.weighted import Keys, Memory
from effitrans.config import Seed, Size, Width


class Performer(OperatorConfig):
    """Linear attention with random features of the softmax kernel.

    >>> Performer(num_features=128, seed=1).name
    'performer'
    """

    name: ClassVar[str] = "performer"

    num_features: Width = 256
    """Random features; the variance of the estimate falls as 1 / num_features. Default: 256."""
    seed: Seed = 0
    """Of the first draw; the features are saved with the model, and `redraw` replaces them. Default: 0."""
    chunk_size: Size = 128
    """Positions of a chunk of the causal form; it changes the speed, not the result. Default: 128."""

    def build(self, site: Site) -> "PerformerAttention":
        return PerformerAttention(self, site)


class PerformerAttention(AttentionOperator):
    """Performer attention; see the module's docstring."""

    honours = frozenset({"causal", "cross"})
    has_state = True
    config: Performer

    def __init__(self, config: Performer, site: Site) -> None:
        super().__init__(config, site)
        self.features = RandomFeatures(config.num_features, site.head_dim, config.seed)

    def redraw(self, seed: int) -> None:
        """Replace the random features by another draw; states from before are of no use after."""
        self.features.redraw(seed)

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
            query, key, value = chunked.scaled_inputs(query_BHLD, key_BGSD, value_BGSD, scale, dropout, dtype)
            padding = mask.key_padding()
            if mask.causal:
                out = self._causal(query, key, value, padding, state)
            else:
                memory = self._summarise(key, value, padding, None)
                spans, recompute = self._spans(query)
                parts = [run_segment(self._look_up, query[:, :, span], memory, recompute=recompute) for span in spans]
                out = torch.cat(parts, dim=-2)
        return out.flatten(1, 2).to(query_BHLD.dtype)

    def _causal(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        padding_BS: Tensor | None,
        state: State | None,
    ) -> Tensor:
        memory = Memory(state["memory"], state["peak"]) if state else None
        before = key_BGSD.shape[2] - query_BHLD.shape[2]
        if before > 0:
            past = slice(0, before)
            memory = self._summarise(key_BGSD[:, :, past], value_BGSD[:, :, past], _part(padding_BS, past), memory)
        spans, recompute = self._spans(query_BHLD)
        outputs = []
        for index, span in enumerate(spans):
            keys = slice(before, None) if span.stop is None else slice(span.start + before, span.stop + before)
            inputs = (query_BHLD[:, :, span], key_BGSD[:, :, keys], value_BGSD[:, :, keys], _part(padding_BS, keys))
            last = index == len(spans) - 1 and state is None
            out, memory = run_segment(self._advance, *inputs, memory, last, recompute=recompute)
            outputs.append(out)
        if state is not None:
            assert memory is not None
            state["memory"], state["peak"] = memory.sums_BGFE, memory.peak_BG
        return torch.cat(outputs, dim=-2)

    def _advance(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        value_BGLD: Tensor,
        padding_BL: Tensor | None,
        memory: Memory | None,
        last: bool,
    ) -> tuple[Tensor, Memory | None]:
        """The output of some positions and, unless none follows, the memory after them."""
        keys = self._keys(key_BGLD, value_BGLD, padding_BL)
        query = self._query_features(query_BHLD, key_BGLD.shape[1])
        out = weighted.attend(query, keys, weighted.causal_mix, chunk=self.config.chunk_size, memory=memory)
        return out, None if last else weighted.summarise(keys, memory)

    def _summarise(
        self, key_BGSD: Tensor, value_BGSD: Tensor, padding_BS: Tensor | None, memory: Memory | None
    ) -> Memory:
        spans, recompute = self._spans(key_BGSD)
        for span in spans:
            inputs = (key_BGSD[:, :, span], value_BGSD[:, :, span], _part(padding_BS, span), memory)
            memory = run_segment(self._summarise_span, *inputs, recompute=recompute)
        assert memory is not None
        return memory

    def _summarise_span(
        self, key_BGSD: Tensor, value_BGSD: Tensor, padding_BS: Tensor | None, memory: Memory | None
    ) -> Memory:
        return weighted.summarise(self._keys(key_BGSD, value_BGSD, padding_BS), memory)

    def _look_up(self, query_BHLD: Tensor, memory: Memory) -> Tensor:
        return chunked.look_up(self._query_features(query_BHLD, memory.peak_BG.shape[1]), memory.sums_BGFE)

    def _keys(self, key_BGSD: Tensor, value_BGSD: Tensor, padding_BS: Tensor | None) -> Keys:
        features, log = self.features(key_BGSD)
        return weighted.make_keys(features, log, value_BGSD, padding_BS)

    def _query_features(self, query_BHLD: Tensor, groups: int) -> Tensor:
        """[B, G, R, L, F]; what they are times is the same for all keys, and cancels."""
        return self.features(query_BHLD)[0].unflatten(1, (groups, -1))

    def _spans(self, tensor_BHLD: Tensor) -> tuple[list[slice], bool]:
        """Spans of chunks whose features fit in a segment, and whether to compute them again in the backward pass."""
        batch, heads, length, _ = tensor_BHLD.shape
        chunk = self.config.chunk_size
        size = batch * heads * chunk * self.config.num_features * tensor_BHLD.element_size()
        spans = weighted.segments(-(-length // chunk), size, tensor_BHLD.device)
        if len(spans) == 1:
            return spans, False
        recompute = size * (length // chunk) > weighted.RECOMPUTE_BYTES
        return [slice(span.start * chunk, min(span.stop * chunk, length)) for span in spans], recompute

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
        query, key = (self.features.plain(tensor * scale**0.5) for tensor in (query_BHLD, key_BGSD))
        return reference.linear_attention(query, key, value_BGSD, mask.dense())


def _part(padding_BS: Tensor | None, span: slice) -> Tensor | None:
    return None if padding_BS is None else padding_BS[:, span]
