"""`quantize`: the verb over all quantization schemes."""

import copy
import logging
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.checkpoint.accepting import takes_models
from effitrans.config import Config, as_config
from effitrans.errors import UsageError
from effitrans.quantization import bits_and_bytes, calibrated, dynamic, low_bit, qat, sensitivity
from effitrans.quantization.calibration import Examples
from effitrans.quantization.config import (
    AWQ,
    FP4,
    GPTQ,
    NF4,
    QAT,
    RTN,
    Int8,
    Int8QAT,
    Int8Smooth,
    Int8Static,
    LLMInt8,
    LowBit,
    Scheme,
    scheme_config,
    scheme_name,
)
from effitrans.quantization.swaps import Outcome, take, with_tables

logger = logging.getLogger(__name__)

METHODS: dict[type[Config], Callable[[PreTrainedModel, Any, Examples], Outcome]] = {
    Int8: dynamic.apply,
    Int8Smooth: calibrated.apply,
    Int8Static: calibrated.apply,
    Int8QAT: qat.apply,
    RTN: low_bit.apply,
    GPTQ: low_bit.apply,
    AWQ: low_bit.apply,
    QAT: qat.apply,
    NF4: bits_and_bytes.apply,
    FP4: bits_and_bytes.apply,
    LLMInt8: bits_and_bytes.apply,
}
"""Config class -> what changes a model in place under it and says what it did."""


@takes_models("model")
def quantize(
    model: PreTrainedModel,
    config: Config | str | None = None,
    data: Any = None,
    *,
    processor: Any = None,
    inplace: bool = False,
) -> PreTrainedModel:
    """Store a model's weights as integers, and under the int8 schemes multiply integers.

    The result is for inference: it is in evaluation mode and cannot be trained. It saves and loads with
    `save_pretrained` and `from_pretrained`, bit-equal, and its config carries the structure and the history. Cast or
    loaded in another type (`to(dtype)`, `half()`, `dtype=...`), it computes in that type between its integers, which
    stay as they are, with their scales.

    Args:
        model: a floating-point model, or its folder, of any architecture, pruned or not.
        config: the scheme's config, or its name (`"nf4"`); default `Int8()`.
        data: for schemes that measure or train, and for bounds, in any form of `effitrans.tasks.forms`. Labels are not
            needed.
        processor: tokenizer or image processor of a task or of texts. Default: the one beside the model's weights.
        inplace: change `model` itself, which saves the memory of a copy.

    Raises:
        UsageError: the model is quantized already, or shares weights in a way unknown to its config; the config
            belongs to no scheme; nothing would change; calibration data are missing, too few or not finite; groups
            that do not divide a layer's width; a bound that cannot be kept.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from effitrans.quantization import Int8, quantize
        >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64))
        >>> small = quantize(model, Int8())
        >>> small.encoder.layer[0].intermediate.dense
        Int8Linear(in_features=32, out_features=64, bias=True)
    """
    config = as_config(config, "quantize", tuple(METHODS), "GPTQ(bits=4)", default=Int8(), named=scheme_config)
    _refuse_quantized(model)
    checkpoint.refuse_unknown_sharing(model)
    target = model if inplace else copy.deepcopy(model)
    before = _weight_bytes(target)
    target.eval()
    examples = Examples(data, processor)
    outcome = METHODS[type(config)](target, config, examples)
    if isinstance(config, Scheme) and (config.max_error is not None or config.max_drop is not None):
        outcome = sensitivity.enforce(target, outcome, config, examples)
    after = _weight_bytes(target)
    assert after < before, "a quantization scheme must make the weights smaller"
    summary = {"weight_bytes_before": before, "weight_bytes_after": after, **_counts(outcome), **outcome.notes}
    checkpoint.record(target, "quantize", config, scheme=scheme_name(config), **summary)
    logger.info("quantized %s: %d -> %d bytes of weights", type(target).__name__, before, after)
    logger.info("left as they are: %s", ", ".join(outcome.left) or "none")
    return target


def check_quantizable(model: PreTrainedModel, config: Config) -> None:
    """Refuse what a model's structure already tells that a scheme cannot quantize.

    Raises:
        UsageError: the model is quantized already, nothing would change, names to skip that match nothing, groups that
            do not divide a layer's width.
    """
    _refuse_quantized(model)
    if isinstance(config, Scheme):
        taken, _ = take(model, config)
        if isinstance(config, LowBit):
            _, linears = with_tables(taken)
            low_bit.check_groups({each.module: each.paths[0] for each in linears}, config.group_size)


def _counts(outcome: Outcome) -> dict[str, Any]:
    tables = sum(swap.candidate.is_embedding for swap in outcome.swaps)
    return {
        "linear_layers": len(outcome.swaps) - tables,
        "embedding_tables": tables,
        "left": list(outcome.left),
    }


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
