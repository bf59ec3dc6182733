"""Performer: softmax attention estimated by positive orthogonal random features (FAVOR+).

    O_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j),   E[phi(q) . phi(k)] = exp(q . k * scale)

after Choromanski et al., "Rethinking Attention with Performers" (2021), eq. 4-7 and algorithm 1; the features are in
`features`. The error of the estimate grows fast with the length of queries and keys. Deviations: the exponentials are
kept relative to a maximum a query, and for keys to one over the tokens of their own sequence (a running one in causal
attention), so the result depends neither on the rest of the batch nor on padding nor on later keys; and nothing is
added to the features, so an exact rescaling is all that this does. One projection serves all heads. Attention
dropout drops whole values, as in `linear`.

Time and memory O(L F D) with F features; while decoding, a causal layer keeps F (D + 1) numbers a head.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension, F features.
"""

from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor

from effitrans.attention import chunked, reference, weighted
from effitrans.attention.features import RandomFeatures
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site, State, compute_dtype
from effitrans.attention.weighted import Keys, Memory


class Performer(OperatorConfig):
    """Linear attention with random features of the softmax kernel.

    >>> Performer(num_features=128, seed=1).name
    'performer'
    """

    name: ClassVar[str] = "performer"

    num_features: int = pydantic.Field(default=256, ge=1)
    """Random features; the variance of the estimate falls as 1 / num_features. Default: 256."""
    seed: int = 0
    """Of the first draw; the features are saved with the model, and `redraw` replaces them. Default: 0."""
    chunk_size: int = pydantic.Field(default=128, ge=1)
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
            features, log = self.features(key)
            keys = weighted.make_keys(features, log, value, mask.key_padding())
            features, _ = self.features(query)
            features = features.unflatten(1, (key.shape[1], -1))
            if mask.causal:
                out = self._causal(features, keys, state)
            else:
                out = chunked.look_up(features, weighted.summarise(keys).sums_BGFE)
        return out.flatten(1, 2).to(query_BHLD.dtype)

    def _causal(self, query_BGRLF: Tensor, keys: Keys, state: State | None) -> Tensor:
        memory = Memory(state["memory"], state["peak"]) if state else None
        before = keys.length - query_BGRLF.shape[3]
        new = keys
        if before > 0:
            memory, new = weighted.summarise(keys.part(0, before), memory), keys.part(before)
        out = weighted.attend(query_BGRLF, new, weighted.causal_mix, chunk=self.config.chunk_size, memory=memory)
        if state is not None:
            memory = weighted.summarise(new, memory)
            state["memory"], state["peak"] = memory.sums_BGFE, memory.peak_BG
        return out

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
