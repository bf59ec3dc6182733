"""`quantize`: the verb over all quantization schemes."""

import copy
import logging
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.checkpoint.accepting import takes_models
from effitrans.config import as_config
from effitrans.errors import UsageError
from effitrans.quantization import sensitivity
from effitrans.quantization.calibration import CalibrationData
from effitrans.quantization.replacement import QuantizationResult
from effitrans.quantization.scheme import Scheme
from effitrans.quantization.schemes import SCHEMES, scheme_config
from effitrans.quantization.schemes.int8.dynamic import Int8

logger = logging.getLogger(__name__)


@takes_models("model")
def quantize(
    model: PreTrainedModel,
    config: Scheme | str | None = None,
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
    kinds = tuple(SCHEMES.values())
    config = as_config(config, "quantize", kinds, "GPTQ(bits=4)", default=Int8(), named=scheme_config)
    _refuse_quantized(model)
    checkpoint.refuse_unknown_sharing(model)
    _require_data(config, data)
    target = model if inplace else copy.deepcopy(model)
    before = _weight_bytes(target)
    target.eval()
    calibration_data = CalibrationData(data, processor)
    result = config.apply(target, calibration_data)
    if config.max_error is not None or config.max_drop is not None:
        result = sensitivity.enforce(target, result, config, calibration_data)
    after = _weight_bytes(target)
    assert after < before, "a quantization scheme must make the weights smaller"
    summary = {"weight_bytes_before": before, "weight_bytes_after": after, **_counts(result), **result.notes}
    checkpoint.record(target, "quantize", config, scheme=config.name, **summary)
    logger.info("quantized %s: %d -> %d bytes of weights", type(target).__name__, before, after)
    logger.info("left as they are: %s", ", ".join(result.left) or "none")
    return target


def check_quantizable(model: PreTrainedModel, config: Scheme) -> None:
    """Refuse what a model's structure already tells that a scheme cannot quantize.

    Raises:
        UsageError: the model is quantized already, nothing would change, names to skip that match nothing, groups that
            do not divide a layer's width.
    """
    _refuse_quantized(model)
    config.select(model)


def _require_data(config: Scheme, data: Any) -> None:
    """Refuse a scheme or a bound that needs data and gets none."""
    if data is not None:
        return
    without = ", ".join(name for name, scheme in SCHEMES.items() if scheme.uses_data_for == "nothing")
    if config.uses_data_for == "training":
        raise UsageError(
            f"{config.name} trains the model and got no data: give a task (--task) or a data set, or use a scheme that "
            f"needs none ({without})"
        )
    bounds = [name for name in ("max_error", "max_drop") if getattr(config, name) is not None]
    if config.uses_data_for == "calibration" or bounds:
        remedy = "leave the bound out" if bounds else f"use a scheme that needs none ({without})"
        raise UsageError(
            f"{bounds[0] if bounds else config.name} measures on calibration data and got none: give a task (--task), "
            f"a data set or a DataLoader of model inputs (labels are not needed), or {remedy}"
        )


def _counts(result: QuantizationResult) -> dict[str, Any]:
    tables = sum(replacement.target.is_embedding for replacement in result.replacements)
    return {
        "linear_layers": len(result.replacements) - tables,
        "embedding_tables": tables,
        "left": list(result.left),
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
