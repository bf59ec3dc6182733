"""The bridge to transformers: one attention function and one mask function, registered under the name "effitrans".

The attention function dispatches to the operator attached to the layer (its child `attention_operator`); a
layer without one runs exact attention. The mask function gives a small object instead of an L x L tensor.
`activate` makes a model that holds operators use both, and is what a loader calls.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from effitrans.attention.cache import find_cache, operator_layer
from effitrans.attention.full import full_attention
from effitrans.attention.mask import AttentionMask, from_tensor, make_mask
from effitrans.attention.operator import FEATURES, AttentionOperator, Site, State
from effitrans.errors import UsageError

NAME = "effitrans"
"""The attention implementation, as transformers calls it."""

CHILD = "attention_operator"
"""The name of the operator among the children of an attention module."""

Observer = Callable[[nn.Module, Site, set[str]], None]
_observers: list[Observer] = []


@dataclass(frozen=True)
class Call:
    """What one layer handed to attention in a forward pass, in the graph of that pass."""

    query_BHLD: Tensor
    key_BGSD: Tensor
    value_BGSD: Tensor
    mask: AttentionMask
    scale: float
    extras: dict[str, Any]
    """`position_bias`, `softcap`, `s_aux`, where the layer has them."""
    operator: str = "full"
    """Name of the operator that computes the attention."""


Recorder = Callable[[nn.Module, Call], None]
_recorders: list[Recorder] = []


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AttentionMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    operator_state: State | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered with `AttentionInterface`.

    Args:
        module: the attention module of the layer.
        query: [B, H, L, D]. key, value: [B, G, S, D], not repeated for grouped queries.
        attention_mask: what `make_mask` returned, a 4-D tensor that the caller of the model made, or None.
        dropout: probability; 0 outside training.
        scaling: factor on the scores; default D ** -0.5.
        is_causal: overrides `module.is_causal` where there is no mask.
        operator_state: from the hook of `attach`, while decoding.
        kwargs: `position_bias`, `softcap`, `s_aux`, and what does not concern attention.

    Returns:
        The output [B, L, H, D], and None: operators have no attention weights to show.

    Raises:
        UsageError: the layer asks for something that its operator does not honour.
    """
    _refuse_unknown(module, kwargs)
    extras = {name: kwargs[name] for name in ("position_bias", "softcap", "s_aux") if kwargs.get(name) is not None}
    mask = _as_mask(module, query, key, attention_mask, is_causal, extras)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    operator = getattr(module, CHILD, None)
    if _observers:
        _observe(module, query, key, mask, extras)
    for recorder in _recorders:
        name = "full" if operator is None else operator.config.name
        recorder(module, Call(query, key, value, mask, scale, extras, name))
    if operator is None:
        out_BHLD = full_attention(query, key, value, mask, scale=scale, dropout=dropout, **extras)
    else:
        out_BHLD = operator(query, key, value, mask, scale=scale, dropout=dropout, state=operator_state, **extras)
    return out_BHLD.transpose(1, 2).contiguous(), None


def _as_mask(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: AttentionMask | Tensor | None,
    is_causal: bool | None,
    extras: dict[str, Any],
) -> AttentionMask:
    q_length, kv_length = query.shape[2], key.shape[2]
    if isinstance(mask, AttentionMask):
        return mask.for_lengths(q_length, kv_length)
    if mask is not None:
        if mask.is_floating_point():
            bias = extras.get("position_bias")
            extras["position_bias"] = mask if bias is None else bias + mask
        return from_tensor(mask, q_length, kv_length)
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", False))
    offset = kv_length - q_length if causal else 0
    return AttentionMask(query.shape[0], q_length, kv_length, q_offset=offset, causal=causal, device=query.device)


def _refuse_unknown(module: nn.Module, kwargs: dict[str, Any]) -> None:
    if kwargs.get("output_attentions"):
        raise UsageError(
            "output_attentions=True: attention operators have no attention weights to return. "
            'Call model.set_attn_implementation("eager") on a model without operators to see them.'
        )
    for name in ("head_mask", "cache"):
        if kwargs.get(name) is not None:
            raise UsageError(f"{type(module).__name__} passes {name!r} to attention, which effitrans cannot honour")


def _observe(module: nn.Module, query: Tensor, key: Tensor, mask: AttentionMask, extras: dict[str, Any]) -> None:
    site = Site(
        num_heads=query.shape[1],
        num_key_value_heads=key.shape[1],
        head_dim=query.shape[3],
        causal=mask.causal,
        cross=query.shape[2] != key.shape[2],
        position_bias="position_bias" in extras,
    )
    asked = {name for name in extras if name in FEATURES}
    asked |= {"mask_pattern"} if not mask.is_structured else set()
    asked |= {"sliding_window"} if mask.window is not None else set()
    for observer in _observers:
        observer(module, site, asked)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Call `observer(module, site, features)` for every layer whose attention runs within the block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Call `recorder(module, call)` for every layer whose attention runs within the block."""
    _recorders.append(recorder)
    try:
        yield
    finally:
        _recorders.remove(recorder)


def attach(module: nn.Module, operator: AttentionOperator) -> None:
    """Make `operator` the attention of `module`, in place of what it had.

    Raises:
        UsageError: the module has something else under the operator's name.
    """
    present = getattr(module, CHILD, None)
    if present is not None and not isinstance(present, AttentionOperator):
        raise UsageError(f"{type(module).__name__} has an attribute {CHILD!r} of its own: no operator can be attached")
    module.register_module(CHILD, operator)
    _hook(module)


def activate(model: PreTrainedModel) -> None:
    """Make a model that holds operators run them. Does nothing to a model without; safe to call again."""
    sites = [module for module in model.modules() if isinstance(getattr(module, CHILD, None), AttentionOperator)]
    if not sites:
        return
    model.set_attn_implementation(NAME)
    for module in sites:
        _hook(module)


def _hook(module: nn.Module) -> None:
    if _before_attention not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_before_attention, with_kwargs=True)


def _before_attention(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Refuse to run without the operator, and hand it the state it decodes from."""
    operator = getattr(module, CHILD, None)
    if operator is None:
        return None
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", NAME)
    if implementation != NAME:
        raise UsageError(
            f"this model's attention implementation was set to {implementation!r}, but its layer "
            f"{type(module).__name__} has the operator {operator.config.name!r}, which would be ignored: "
            f'call model.set_attn_implementation("{NAME}")'
        )
    cache = find_cache(args, kwargs)
    if cache is None or not operator.keeps_state:
        return None
    entry = operator_layer(cache, getattr(module, "layer_idx", None))
    return None if entry is None else (args, {**kwargs, "operator_state": entry.state})


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, make_mask)
