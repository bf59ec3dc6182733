"""From entries of different lengths to one batch of tensors, padded to the longest of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effitrans.errors import UsageError

BOOKKEEPING = frozenset({"index", "length", "bytes", "tokens", "offsets"})
"""Columns of an encoded data set that are not model inputs."""

MAIN_INPUTS = ("input_ids", "pixel_values", "inputs_embeds")
"""One of these is in every batch that a model can run on."""

LABELS = ("labels", "start_positions", "end_positions")
"""What a batch holds for the loss alone."""

IGNORED = -100
"""The label that losses skip."""

FILL = {"labels": IGNORED}
"""What sequences are padded with, where it is neither the padding token nor 0."""

TOKEN_COLUMNS = frozenset({"input_ids", "pair_input_ids", "decoder_input_ids"})
"""Sequences that are padded with the padding token."""


def pad_batch(
    features: Sequence[Mapping[str, Any]], pad_token_id: int, multiple: int | None = None
) -> dict[str, Tensor]:
    """One batch of some entries of an encoded data set.

    Args:
        features: model inputs by name: numbers, sequences of numbers, or arrays of equal shape.
        pad_token_id: padding of token ids. Labels get -100, masks and types 0, always on the right.
        multiple: round the padded length up to a multiple of this.

    Returns:
        Tensors of B entries: int64 or float32, [B], [B, L] or [B, ...].

    Raises:
        UsageError: an entry lacks what the first has, or holds numbers of another shape.

    >>> pad_batch([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}], pad_token_id=0)["input_ids"].tolist()
    [[5, 6, 7], [8, 0, 0]]
    """
    names = [name for name in features[0] if name not in BOOKKEEPING]
    fills = {name: pad_token_id if name in TOKEN_COLUMNS else FILL.get(name, 0) for name in names}
    try:
        return {name: _stack([feature[name] for feature in features], fills[name], multiple) for name in names}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"the examples of a batch do not fit together ({error}): expected the same names in each, "
            f"{', '.join(names)}, with numbers of one shape"
        ) from None


def _stack(values: list[Any], fill: int, multiple: int | None) -> Tensor:
    if isinstance(values[0], Tensor) and values[0].ndim != 1:
        return torch.stack(values)
    if isinstance(values[0], int | float | np.number):
        return torch.tensor(values, dtype=torch.float32 if _has_float(values) else torch.int64)
    tensors = [torch.as_tensor(value) for value in values]
    if tensors[0].ndim != 1:
        stacked = torch.stack(tensors)
        return stacked.float() if stacked.is_floating_point() else stacked
    length = max(len(tensor) for tensor in tensors)
    if multiple:
        length = -(-length // multiple) * multiple
    dtype = torch.float32 if tensors[0].is_floating_point() else torch.int64
    batch = torch.full((len(tensors), length), fill, dtype=dtype)
    for row, tensor in zip(batch, tensors, strict=True):
        row[: len(tensor)] = tensor
    return batch


def _has_float(values: list[Any]) -> bool:
    return any(isinstance(value, float | np.floating) for value in values)


class Padding:
    """Collates encoded rows that came without a task: sequences are padded on the right to the longest.

    Columns of text are left out, `label` is renamed to `labels` as models want it, and token ids that bring no
    `attention_mask` get one.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return pad_batch([self._inputs(row) for row in rows], self.pad_token_id)

    @staticmethod
    def _inputs(row: Mapping[str, Any]) -> dict[str, Any]:
        inputs = {("labels" if name == "label" else name): value for name, value in row.items()}
        inputs = {name: value for name, value in inputs.items() if not isinstance(value, str | None | Mapping)}
        if "input_ids" in inputs and "attention_mask" not in inputs:
            inputs["attention_mask"] = [1] * len(inputs["input_ids"])
        return inputs
