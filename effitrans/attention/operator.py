"""What an attention operator is: a config, and a module built from it for one attention site of a model.

An operator is attached to the attention module of a layer as its child `attention_operator`. It owns whatever
parameters the method has, so that they train, move, save and load with the layer, and it is the kind of module
that the checkpoint's manifest calls `attention_operator`.

Shapes: B batch, H query heads, G key/value heads, L queries, S keys, D head dimension.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import pydantic
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.attention.mask import AttentionMask
from effitrans.config import Config, Width
from effitrans.errors import UsageError

State = dict[str, Tensor]
"""What an operator remembers between decoding steps; the batch is the first dimension of every tensor."""

FEATURES = {
    "position_bias": "a bias on the attention scores (T5, ALiBi)",
    "softcap": "capped attention scores (Gemma)",
    "s_aux": "attention sinks (gpt-oss)",
    "sliding_window": "the model's own sliding window",
    "mask_pattern": "a mask beyond causal, bidirectional and padding (packed sequences, a 4-D mask, a static cache)",
    "cross": "cross-attention",
    "causal": "causal attention",
}
"""What a layer may ask of an operator beyond bidirectional self-attention -> how a message calls it."""


class Site(Config):
    """The attention of one layer, as a probe forward pass saw it."""

    num_heads: Width
    """Query heads."""
    num_key_value_heads: Width
    """Key/value heads; fewer than `num_heads` under grouped-query attention."""
    head_dim: Width
    """Features of one head."""
    causal: bool = False
    """Queries see no later key."""
    cross: bool = False
    """Keys come from another sequence."""
    position_bias: bool = False
    """The layer adds a bias to the scores."""


class OperatorConfig(Config):
    """Base of the operators' configs. A subclass sets `name` and builds its operator."""

    verb: ClassVar[str] = "swap_attention"
    name: ClassVar[str]
    """The name in the registry, on the command line and in recipes."""

    def build(self, site: Site) -> "AttentionOperator":
        """The operator for one site, with freshly initialised parameters where it has any.

        Raises:
            UsageError: this operator is not defined for such a site.
        """
        raise NotImplementedError


class OperatorSpec(Config):
    """What a manifest says of an operator."""

    operator: str
    """The name in the registry."""
    config: dict[str, Any]
    """Its settings, which its own config checks."""
    site: Site
    """The attention it is attached to."""

    @pydantic.model_validator(mode="after")
    def _check_config(self) -> Self:
        from effitrans.attention.registry import operator_config

        operator_config(self.operator, self.config)
        return self


class AttentionOperator(nn.Module, ABC):
    """Base of the operators, and the module kind of the manifest.

    Subclasses implement `attend` (the fast path) and `reference` (the dense oracle it is tested against), and
    list in `honours` the `FEATURES` they respect. Anything else is refused by name, at the swap where the probe
    shows it, else in the forward pass.
    """

    kind: ClassVar[str] = "attention_operator"
    Spec: ClassVar[type[Config]] = OperatorSpec
    trainable: ClassVar[bool] = True
    honours: frozenset[str] = frozenset({"causal"})
    has_state: ClassVar[bool] = False
    """Whether `attend` takes `state`, so that decoding needs no growing cache."""

    def __init__(self, config: OperatorConfig, site: Site) -> None:
        super().__init__()
        self.config = config
        self.site = site
        self.refuse({name for name in ("causal", "cross", "position_bias") if getattr(site, name)})

    @abstractmethod
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
        """The attention output [B, H, L, D], in the dtype of the query.

        Args:
            query_BHLD, key_BGSD, value_BGSD: projected heads; keys are not repeated for grouped queries.
            mask: what each query may see; a query that sees nothing gives zeros.
            scale: factor on the scores (softmax), as the layer defines it.
            dropout: probability; 0 outside training.
            state: what the previous call left behind; the operator reads it, and writes what the next call needs.
                The keys are then the new ones only. An empty dict at the start; None outside decoding.
            extras: `position_bias` [B or 1, H, L, S], `softcap` (float), `s_aux` [H]: those in `honours`.
        """

    @abstractmethod
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
        """What `attend` must equal, written for reading, in quadratic time and memory, without dropout."""

    def forward(
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
        """`attend`, after refusing what this operator does not honour."""
        asked = set(extras)
        if not mask.is_structured:
            asked.add("mask_pattern")
        if mask.window is not None:
            asked.add("sliding_window")
        self.refuse(asked)
        return self.attend(query_BHLD, key_BGSD, value_BGSD, mask, scale=scale, dropout=dropout, state=state, **extras)

    def refuse(self, asked: set[str]) -> None:
        """Raise if the layer asks for something this operator does not honour.

        Raises:
            UsageError: with the features named.
        """
        if missing := sorted(asked - self.honours):
            raise UsageError(
                f"attention operator {self.config.name!r} cannot honour "
                f"{'; '.join(FEATURES[name] for name in missing)}: leave this layer as it is, or give it another "
                "operator ('full' honours all of these)"
            )

    @property
    def keeps_state(self) -> bool:
        """Whether this layer decodes from a state of its own instead of the cached keys and values.

        A layer with a position bias computes it from the number of cached keys, so it keeps them.
        """
        return self.has_state and self.site.causal and not self.site.position_bias

    def keep_heads(self, query_heads: Sequence[int], key_value_heads: Sequence[int]) -> None:
        """Follow the removal of heads from the layer, in place; operators with parameters a head slice them.

        Args:
            query_heads: indices of the query heads that stay.
            key_value_heads: indices of the key/value heads that stay.
        """
        counts = {"num_heads": len(query_heads), "num_key_value_heads": len(key_value_heads)}
        self.site = self.site.model_copy(update=counts)

    def spec(self) -> dict[str, Any]:
        """How to build this operator empty: what the manifest stores."""
        return {
            "operator": self.config.name,
            "config": self.config.model_dump(mode="json"),
            "site": self.site.model_dump(mode="json"),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any], original: nn.Module | None = None) -> Self:
        """The operator that a manifest describes, in torch's default type, as `from_pretrained` builds the rest.

        `original` is not used, attention modules have no such child.
        """
        from effitrans.attention.registry import operator_config

        operator = operator_config(spec["operator"], spec["config"]).build(Site(**spec["site"]))
        return operator.to(torch.get_default_dtype())  # type: ignore[return-value]

    @staticmethod
    def activate(model: PreTrainedModel) -> None:
        """Make a model that holds operators run them."""
        from effitrans.attention.interface import activate

        activate(model)

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.config)
        return f"{self.config.name}({settings})"


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float64 stays, everything else accumulates in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
