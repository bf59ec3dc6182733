"""Calibration batches for the tiny models."""

import torch
from torch import Tensor

from tests.architectures.families import VOCABULARY, Family


def batches_for(family: Family, number: int = 8) -> list[dict[str, Tensor]]:
    """The family's inputs with other tokens or pixels in each batch, and without labels where there is a choice."""
    batches = []
    for seed in range(number):
        generator = torch.Generator().manual_seed(100 + seed)
        batch = dict(family.inputs())
        for name in ("input_ids", "labels"):
            if name in batch and batch[name].dim() == 2:
                batch[name] = torch.randint(5, VOCABULARY, batch[name].shape, generator=generator)
        for name in ("pixel_values", "encoder_hidden_states"):
            if name in batch:
                batch[name] = torch.randn(batch[name].shape, generator=generator)
        batches.append(batch)
    return batches
