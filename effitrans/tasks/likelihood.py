"""Negative log-likelihood over vocabularies, in slices that bound the memory of the logits."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from effitrans.tasks.padding import IGNORED

MOST_LOGITS = 2**27
"""Logits (rows x tokens x vocabulary) that one forward may give: 512 MiB in fp32."""


def in_slices(batch: dict[str, Tensor], model: Any) -> Iterator[dict[str, Tensor]]:
    """Parts of a batch, in order, whose logits stay below `MOST_LOGITS`; the whole batch if they do anyway."""
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None) or 1
    rows, length = batch["labels"].shape
    step = max(1, MOST_LOGITS // (length * vocabulary))
    for start in range(0, rows, step):
        yield {name: tensor[start : start + step] for name, tensor in batch.items()}


def token_losses(logits: Tensor, labels: Tensor) -> list[float]:
    """The summed negative log-likelihood in nats of each row.

    Args:
        logits: [B, L, V], of any floating dtype; computed in fp32, a row at a time.
        labels: [B, L]; -100 is not counted.
    """
    losses = []
    for row, wanted in zip(logits, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(row.float(), wanted, ignore_index=IGNORED, reduction="none")
        losses.append(loss.double().sum().item())
    return losses
