"""Decoding from an operator's own state instead of a cache that grows with the context.

transformers fills a cache before it calls the attention function, and does not pass the cache on. So a forward
pre-hook on the attention module puts an `OperatorCacheLayer` in the cache where the layer's entry is still
empty, and hands the operator that entry's state. `generate()` and any `DynamicCache` work as they are.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, EncoderDecoderCache

from effitrans.attention.operator import State
from effitrans.errors import UsageError


class OperatorCacheLayer(CacheLayerMixin):
    """The cache entry of a layer whose operator keeps a state. `update` returns the new keys and values alone."""

    is_compileable = False
    is_croppable = False
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.state: State = {}
        self.cumulative_length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.cumulative_length += key_states.shape[-2]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name until transformers 5.13

    def num_bytes(self) -> int:
        """Bytes held, which do not grow with the number of tokens seen."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.state.values())

    def offload(self) -> None:
        self.state.update({name: tensor.to("cpu", non_blocking=True) for name, tensor in self.state.items()})

    def prefetch(self) -> None:
        self.state.update({name: tensor.to(self.device, non_blocking=True) for name, tensor in self.state.items()})

    def reset(self) -> None:
        self.state.clear()
        self.cumulative_length = 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.state.update({name: tensor.repeat_interleave(repeats, dim=0) for name, tensor in self.state.items()})

    def batch_select_indices(self, indices: Tensor) -> None:
        self.state.update({name: tensor[indices.to(tensor.device)] for name, tensor in self.state.items()})

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise UsageError(
                "the attention operator of this layer keeps a state that cannot go back to earlier tokens: "
                "generate without assisted decoding or prompt lookup"
            )


def operator_layer(cache: Any, layer_idx: int | None) -> OperatorCacheLayer | None:
    """The entry of layer `layer_idx`, made an `OperatorCacheLayer` where it is empty.

    Returns:
        None where the cache holds keys and values for this layer already, or is not a plain dynamic one: the
        operator then works on all keys, with the same result.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if type(cache) is not DynamicCache or cache.offloading or layer_idx is None:
        return None
    while cache.layer_class_to_replicate is not None and len(cache.layers) <= layer_idx:
        cache.layers.append(cache.layer_class_to_replicate())
    entry = cache.layers[layer_idx]
    if type(entry) is DynamicLayer and not entry.get_seq_length():
        entry = cache.layers[layer_idx] = OperatorCacheLayer()
    return entry if isinstance(entry, OperatorCacheLayer) else None


def find_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    """The cache among the arguments of an attention module."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
