"""`quantize`: the verb over all quantization schemes."""

import copy
import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.quantization import dynamic
from effitrans.quantization.config import SCHEMES, Int8

logger = logging.getLogger(__name__)

METHODS: dict[type[Config], Callable[[PreTrainedModel, Any, Any], dict[str, Any]]] = {
    Int8: dynamic.apply,
}
"""Config class -> what changes a model in place under it and returns facts about the outcome."""


def quantize(
    model: PreTrainedModel, config: Config | None = None, data: Any = None, *, inplace: bool = False
) -> PreTrainedModel:
    """Store a model's weights as integers and multiply integers.

    The result is for inference: it is in evaluation mode and cannot be trained. It saves and loads with
    `save_pretrained` and `from_pretrained`, bit-equal, and its config carries the structure and the history.

    Args:
        model: a floating-point model of any architecture, pruned or not.
        config: the scheme's config; default `Int8()`.
        data: calibration data, for schemes that need them. `Int8` does not, and takes none into account.
        inplace: change `model` itself, which saves the memory of a copy.

    Raises:
        UsageError: the model is quantized already; the config belongs to no scheme; nothing would change.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from effitrans.quantization import Int8, quantize
        >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64))
        >>> small = quantize(model, Int8())
        >>> small.encoder.layer[0].intermediate.dense
        Int8Linear(in_features=32, out_features=64, bias=True)
    """
    config = Int8() if config is None else config
    if type(config) not in METHODS:
        schemes = ", ".join(f"{scheme.__name__} ({name})" for name, scheme in SCHEMES.items())
        raise UsageError(f"quantize takes the config of a scheme, received {type(config).__name__}: use {schemes}")
    _refuse_quantized(model)
    target = model if inplace else copy.deepcopy(model)
    before = _weight_bytes(target)
    outcome = METHODS[type(config)](target, config, data)
    after = _weight_bytes(target)
    assert after < before, "a quantization scheme must make the weights smaller"
    target.eval()
    scheme = next(name for name, known in SCHEMES.items() if known is type(config))
    checkpoint.record(
        target, "quantize", config, scheme=scheme, weight_bytes_before=before, weight_bytes_after=after, **outcome
    )
    logger.info("quantized %s: %d -> %d bytes of weights", type(target).__name__, before, after)
    return target


def _refuse_quantized(model: PreTrainedModel) -> None:
    if not getattr(model, "is_quantized", False):
        return
    method = getattr(model, "quantization_method", None) or "another method"
    raise UsageError(
        f"this {type(model).__name__} is quantized already (by {getattr(method, 'value', method)}), and rounding "
        "rounded weights again only adds error: quantize the floating-point model"
    )


def _weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and persistent buffers, shared ones once: what a checkpoint of the model takes."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
