"""What stands in a model where a whole sublayer was removed.

An attention block or a feed-forward network that is gone contributes nothing to the residual stream. Its linear
modules become `Zero`, its own pre-norm becomes `Same`, and an attention module becomes `AbsentAttention`; none
holds weights, and their forward passes touch no more than a scalar.

Shapes: B batch, L length.
"""

from typing import Any, ClassVar, Self

from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache


class _Absent(nn.Module):
    """A module without weights that the manifest can name."""

    def spec(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_spec(cls, spec: dict[str, Any], original: nn.Module | None) -> Self:
        return cls(**spec)


class _NoWeight:
    """What families find that look at the weight of a projection: no tensor, and one that needs no initialisation."""

    _is_hf_initialized = True


class Zero(_Absent):
    """In place of a linear module: a scalar zero in the type of the input, whatever the input."""

    kind: ClassVar[str] = "zero"

    def __init__(self) -> None:
        super().__init__()
        self.weight = _NoWeight()
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class Same(_Absent):
    """In place of the norm in front of a removed sublayer: the input."""

    kind: ClassVar[str] = "same"

    def forward(self, x: Tensor) -> Tensor:
        return x


class AbsentAttention(_Absent):
    """In place of an attention module: a scalar zero as output, and no attention weights.

    While decoding it notes the number of tokens in its entry of the cache, one number for each, since some
    models read the length of the context from the first layer's entry.

    Args:
        layer_idx: index of the layer in the cache; None where the model gives its layers none.
        returns_bias: the module returns the position bias that it was given as its second value (T5).
    """

    kind: ClassVar[str] = "absent_attention"

    def __init__(self, layer_idx: int | None = None, returns_bias: bool = False) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.returns_bias = returns_bias

    def spec(self) -> dict[str, Any]:
        return {"layer_idx": self.layer_idx, "returns_bias": self.returns_bias}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is not None and self.layer_idx is not None:
            entries = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
            counted = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            entries.update(counted, counted, self.layer_idx)
        zero = hidden_states.new_zeros(())
        return (zero, kwargs.get("position_bias"), None) if self.returns_bias else (zero, None)
