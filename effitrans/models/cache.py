"""The keys and values of earlier tokens, and the two names under which transformers hands them on."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""The name of the argument and of the output: `cache` from transformers 5.24 on, `past_key_values` before."""


def takes_cache(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a forward method that has a parameter `past_key_values` be called with `cache` as well."""

    @wraps(forward)
    def renamed(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "cache" in kwargs:
            kwargs["past_key_values"] = kwargs.pop("cache")
        return forward(self, *args, **kwargs)

    return renamed


def self_attention_cache(cache: Cache) -> Cache:
    """The part of a cache that belongs to self-attention."""
    return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache


def past_length(cache: Cache, layer_idx: int = 0) -> int | Tensor:
    """Number of tokens in the cache. A static cache counts in a tensor that its update changes, hence the copy."""
    past = cache.get_seq_length(layer_idx)
    return past.clone() if isinstance(past, Tensor) else past
