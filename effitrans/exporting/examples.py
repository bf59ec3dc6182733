"""The inputs on which an exported model is compared with the original."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.evaluation.shapes import inference_inputs
from effitrans.tasks import calibration_batches

Batch = dict[str, Tensor]

SHAPES = ((2, 8), (1, 5), (3, 17))
"""Batch size and length of the generated batches. The graph is traced at the first one alone."""


def generated(model: PreTrainedModel, processor: Any, seed: int = 0) -> list[Batch]:
    """Random tokens, the last row of a batch with padding, or random images."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = getattr(config, "num_channels", 3), height, width
        return [{"pixel_values": torch.randn(rows, *shape, generator=generator)} for rows, _ in SHAPES]
    positions = getattr(config, "max_position_embeddings", None) or 512
    batches = []
    for rows, length in SHAPES:
        # Some families keep the first positions for padding.
        length = max(2, min(length, positions - 4))
        ids = torch.randint(config.vocab_size, (rows, length), generator=generator)
        pad = getattr(config, "pad_token_id", None)
        if pad is not None:
            ids = torch.where(ids == pad, (pad + 1) % config.vocab_size, ids)
        mask = torch.ones_like(ids)
        if rows > 1:
            mask[-1, length - length // 3 :] = 0
            ids = ids if pad is None else torch.where(mask.bool(), ids, pad)
        batch = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in (getattr(processor, "model_input_names", None) or ()):
            batch["token_type_ids"] = torch.zeros_like(ids)
        batches.append(inference_inputs(batch, model))
    return batches


def real(data: Any, model: PreTrainedModel, processor: Any, limit: int) -> list[Batch]:
    """Batches of what the caller passed, without labels."""
    batches = calibration_batches(data, model, processor, limit=limit, batch_size=8, seed=0)
    return [inference_inputs(batch, model) for batch in batches]


def for_tracing(batches: Sequence[Mapping[str, Tensor]]) -> Batch:
    """A batch of at least two rows: a size of 1 would be taken for a constant."""
    first = dict(batches[0])
    if len(next(iter(first.values()))) > 1:
        return first
    return {name: torch.cat([tensor, tensor]) for name, tensor in first.items()}
