"""Whether the weights of a folder are those of the model that its config describes.

transformers initialises what the weights lack, leaves out what the model lacks, and says so in a log. A score of such a
model is a score of random numbers, so it is refused here. What remains legitimate is a head: the weights of an encoder,
or of a model with another head, may be loaded to train a new one, and a head that the class does not have is left out.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForPreTraining, PreTrainedConfig, PreTrainedModel

from effitrans.checkpoint.weights import read_shapes, same_class, shorten
from effitrans.errors import CheckpointError

logger = logging.getLogger(__name__)

_OLD_BUFFERS = ("masked_bias", "position_ids", "inv_freq")
"""Constants that earlier versions of transformers saved among the weights."""
_SLACK = 2**26
"""Weights that a head, or buffers that are not saved, may add."""


def check_size(skeleton: PreTrainedModel, config: PreTrainedConfig, files: list[Path]) -> None:
    """Refuse a config that describes a model far larger than its weights, before memory is taken for it.

    A quantized model is left to its quantizer, which knows how its weights are stored.

    Raises:
        CheckpointError: with both numbers.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    described = sum(tensor.numel() for tensor in (*skeleton.parameters(), *skeleton.buffers()))
    stored = sum(torch.Size(shape).numel() for shape in read_shapes(files).values())
    if described > 2 * stored + _SLACK:
        raise CheckpointError(
            f"{files[0].parent}: config.json describes a {type(skeleton).__name__} of {described:,} numbers, and the "
            f"weights hold {stored:,}: they do not belong together; save or download the folder again"
        )


def check_loaded(name: str, model: PreTrainedModel, info: dict[str, Any], new_head: bool) -> None:
    """Refuse a model that was not loaded as it was saved.

    Args:
        name: the folder or hub name, for messages.
        model: the loaded model.
        info: what `from_pretrained(output_loading_info=True)` says of it.
        new_head: accept that the weights have no head for this class, and say that it is new.

    Raises:
        CheckpointError: the weights lack tensors of the model, have more than it has, or others in shape; they are
            named.
    """
    base = _Base(model)
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    unexpected = {key for key in unexpected if key.rpartition(".")[2] not in _OLD_BUFFERS}
    if model.config.architectures and same_class(model):
        if unexpected:
            unexpected -= _pretraining_heads(model)
    else:
        heads = {key for key in missing | mismatched if not base.holds(key)}
        if heads and not new_head:
            raise CheckpointError(
                f"{name} was saved as {_saved_as(model)} and has no head for {type(model).__name__} "
                f"({shorten(heads)}): train one first (`effitrans train --model {name}`)"
            )
        if heads:
            logger.warning("%s has no %s: new weights, to be trained", name, shorten(heads))
        missing, mismatched = missing - heads, mismatched - heads
        unexpected = {key for key in unexpected if base.holds(key)}
        # Of a bare model the last hidden states are read.
        missing = {key for key in missing if not base.is_pooler(key)}
    unexpected = {key for key in unexpected if not base.is_pooler(key)}
    for problem, names in (("lacks", missing), ("has unexpected", unexpected), ("has misshapen", mismatched)):
        if names:
            raise CheckpointError(
                f"{name} {problem} weights ({len(names)}): {shorten(names)}. The weights and config.json do not belong "
                "together; save or download the folder again"
            )


class _Base:
    """The part of a model that all heads share."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.prefix = f"{model.base_model_prefix}."
        base = model.base_model
        self.is_bare = base is model
        self.children = {name for name, _ in base.named_children()} | set(dict(base.named_parameters(recurse=False)))

    def _first(self, key: str) -> str:
        return key.removeprefix(self.prefix).split(".")[0]

    def holds(self, key: str) -> bool:
        """Whether a tensor of the weights or the model is part of it; a pooler is a head."""
        inside = key.startswith(self.prefix) or self._first(key) in self.children
        return inside and (self.is_bare or not self.is_pooler(key))

    def is_pooler(self, key: str) -> bool:
        return self._first(key) == "pooler"


def _pretraining_heads(model: PreTrainedModel) -> set[str]:
    """Tensors of the class that the architecture was pretrained with: BERT's has a second head."""
    try:
        with torch.device("meta"):
            return set(AutoModelForPreTraining.from_config(model.config).state_dict())
    except ValueError:
        return set()


def _saved_as(model: PreTrainedModel) -> str:
    return ", ".join(map(str, model.config.architectures or ["another class"]))
