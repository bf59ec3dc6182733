"""The batches that models are timed on: real ones from the task, and ones of a fixed length made of real tokens."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.tasks.padding import LABELS

if TYPE_CHECKING:
    from effitrans.tasks import Task


def inference_inputs(batch: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Tensor]:
    """What the forward pass of inference takes.

    That is everything but the targets; an encoder-decoder keeps its labels where it has no other decoder input.
    """
    accepted = inspect.signature(model.forward).parameters
    needs_labels = bool(getattr(model.config, "is_encoder_decoder", False)) and "decoder_input_ids" not in batch
    return {
        name: value
        for name, value in batch.items()
        if name in accepted and (name not in LABELS or (needs_labels and name == "labels"))
    }


class Batches(Protocol):
    """Where the timed batches of a model come from."""

    def batches(self, model: PreTrainedModel, processor: Any, batch_size: int, most: int) -> list[dict[str, Tensor]]:
        """Up to `most` full batches; none if there are fewer examples than a batch."""
        ...


@dataclass
class SplitBatches:
    """The real batches of each model: examples in the order of the data, each batch padded to its own longest."""

    task: "Task"
    split: str
    limit: int | None = None
    _encoded: dict[int, Any] = field(default_factory=dict)
    _batches: dict[tuple[int, int, int], list[dict[str, Tensor]]] = field(default_factory=dict)

    def batches(self, model: PreTrainedModel, processor: Any, batch_size: int, most: int) -> list[dict[str, Tensor]]:
        """Up to `most` full batches spread evenly over the split; none if it has fewer examples than a batch."""
        from effitrans.tasks import collator, encode

        key = (id(model), batch_size, most)
        if key not in self._batches:
            if id(model) not in self._encoded:
                self._encoded[id(model)] = encode(self.task, self.split, processor, model, self.limit)
            encoded = self._encoded[id(model)]
            collate = collator(self.task, processor, model)
            made = []
            for k in spread(len(encoded) // batch_size, most):
                batch = collate([encoded[i] for i in range(k * batch_size, (k + 1) * batch_size)])
                made.append({name: t.to(model.device) for name, t in inference_inputs(batch, model).items()})
            self._batches[key] = made
        return self._batches[key]


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


def mean_length(batches: Sequence[Mapping[str, Tensor]]) -> float | None:
    """Mean padded length of batches of tokens; null for other inputs."""
    if "input_ids" not in batches[0]:
        return None
    return sum(batch["input_ids"].shape[1] for batch in batches) / len(batches)


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of the indices below `count`, evenly spaced from the first to the last.

    >>> spread(10, 4)
    [0, 3, 6, 9]
    """
    kept = min(count, most)
    return [round(i * (count - 1) / max(1, kept - 1)) for i in range(kept)]


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
