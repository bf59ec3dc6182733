"""The batches that models are timed on: real ones from the task, and ones of a fixed length made of real tokens."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from effitrans.tasks import Task

TARGETS = ("labels", "start_positions", "end_positions")
"""Inputs that only make a loss."""


def inference_inputs(batch: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Tensor]:
    """What the forward pass of inference takes: no labels, except where an encoder-decoder makes its decoder's input
    from them."""
    accepted = inspect.signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    keep_labels = bool(getattr(model.config, "is_encoder_decoder", False))
    return {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor)
        and (name in accepted or (anything and name not in ("index", "length")))
        and (name not in TARGETS or (keep_labels and name == "labels"))
    }


def data_batches(
    model: PreTrainedModel,
    task: "Task",
    split: str,
    processor: Any,
    *,
    batch_size: int,
    most: int,
    limit: int | None = None,
) -> list[dict[str, Tensor]]:
    """Up to `most` full batches of real examples in the order of the data, spread evenly over the split.

    Each is padded to its own longest example. Empty if the split has fewer examples than a batch.
    """
    from effitrans.tasks import data_loader

    loader = data_loader(task, split, processor, batch_size=batch_size, model=model, limit=limit)
    device = next(model.parameters()).device
    full = [inference_inputs(batch, model) for batch in loader]
    full = [batch for batch in full if _rows(batch) == batch_size]
    count = min(most, len(full))
    chosen = [round(i * (len(full) - 1) / max(1, count - 1)) for i in range(count)]
    return [{name: tensor.to(device) for name, tensor in full[i].items()} for i in chosen]


def fixed_batch(batches: Sequence[Mapping[str, Tensor]], batch_size: int, length: int) -> dict[str, Tensor]:
    """A batch of exactly `batch_size` x `length` tokens without padding, made of the real tokens of other batches.

    Masks are all ones; other inputs of one entry a token (token types) are zero.
    """
    result = {}
    for name in batches[0]:
        template = batches[0][name]
        if name in ("input_ids", "decoder_input_ids", "labels"):
            result[name] = _stream([_real_tokens(batch, name) for batch in batches], batch_size, length)
        elif name.endswith("attention_mask"):
            result[name] = template.new_ones((batch_size, length))
        else:
            result[name] = template.new_zeros((batch_size, length))
    return result


def can_have_length(batch: Mapping[str, Tensor]) -> bool:
    """Whether the inputs are token sequences, so that a length can be chosen."""
    return "input_ids" in batch and all(tensor.dim() == 2 for tensor in batch.values())


def longest(batch: Mapping[str, Tensor]) -> int:
    """Padded length of a batch of tokens."""
    return batch["input_ids"].shape[1]


def real_tokens(batch: Mapping[str, Tensor]) -> int | None:
    """Tokens that are not padding; null for inputs that are no tokens."""
    if "input_ids" not in batch:
        return None
    mask = batch.get("attention_mask")
    return int(mask.sum()) if mask is not None else batch["input_ids"].numel()


def most_positions(model: PreTrainedModel) -> int | None:
    """Longest sequence the model has positions for; null where there is no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    offset = getattr(model.config, "pad_token_id", None) or 0
    # RoBERTa counts positions from the padding index on, which takes so many of them away.
    return limit - offset - 1 if limit and model.config.model_type in ("roberta", "xlm-roberta") else limit


def _rows(batch: Mapping[str, Tensor]) -> int:
    return len(next(iter(batch.values()), ()))


def _real_tokens(batch: Mapping[str, Tensor], name: str) -> Tensor:
    tokens = batch[name]
    if name == "labels":
        return tokens[tokens >= 0]
    mask = batch.get("attention_mask")
    return tokens[mask.bool()] if mask is not None and mask.shape == tokens.shape else tokens.flatten()


def _stream(parts: list[Tensor], batch_size: int, length: int) -> Tensor:
    tokens = torch.cat(parts)
    needed = batch_size * length
    return tokens.repeat(-(-needed // len(tokens)))[:needed].reshape(batch_size, length).contiguous()
