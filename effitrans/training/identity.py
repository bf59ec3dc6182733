"""What a run was started with, told from a sample: a run that is resumed must have the same teachers and data.

Whole weights and data sets would take minutes to read. A few values of every tensor are enough to tell two trained
models apart, and a few hundred rows to tell two data sets apart unless they differ in a few places only.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from effitrans.files import sha256_json
from effitrans.training.data import Data

if TYPE_CHECKING:
    from datasets import Dataset

_VALUES = 64
"""Values that are read of each tensor, evenly spaced."""
_ROWS = 256
"""Rows that are read of a data set, evenly spaced."""


def identity(model: nn.Module, data: Data, others: Mapping[str, nn.Module]) -> dict[str, str | None]:
    """What a run is made of -> its fingerprint.

    Args:
        model: what is trained. The values of its weights have no part in it: a resumed run takes them from its
            checkpoint, and a new head may have been drawn at random.
        data: encoded.
        others: name -> further model that the result depends on.
    """
    return {
        "model": of_structure(model),
        "training data": of_rows(data.train),
        "validation data": of_rows(data.validation),
        **{name: of_weights(other) for name, other in others.items()},
    }


def of_structure(model: nn.Module) -> str:
    """Hex SHA-256 over the modules with their settings, and over names, shapes and dtypes of the weights and whether
    they learn.
    """
    modules = [(name, type(module).__name__, module.extra_repr()) for name, module in model.named_modules()]
    weights = [(name, str(w.dtype), tuple(w.shape), w.requires_grad) for name, w in model.named_parameters()]
    return sha256_json([modules, weights])


def of_weights(model: nn.Module) -> str:
    """Hex SHA-256 over the class and over a sample of every weight and buffer."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, len(flat) // _VALUES)].cpu().contiguous()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def of_rows(rows: "Dataset | DataLoader | None") -> str | None:
    """Hex SHA-256 over the number of rows, the columns and a sample of the rows; of a DataLoader, its length alone."""
    if rows is None:
        return None
    if isinstance(rows, DataLoader):
        return f"{len(rows)} batches"
    table: Any = rows.with_format("arrow")[range(0, len(rows), max(1, len(rows) // _ROWS))]
    columns = sorted((field.name, str(field.type)) for field in table.schema)
    return sha256_json([len(rows), columns, table.select([name for name, _ in columns]).to_pylist()])
