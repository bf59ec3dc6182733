"""What a cache is valid for: the teacher's weights and the inputs in the data, by content."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from datasets import Dataset


def of_model(model: PreTrainedModel) -> str:
    """Hex SHA-256 over the class, the config (without where it came from) and every weight and buffer."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in ("_name_or_path",)}
    digest = hashlib.sha256(f"{type(model).__name__}{json.dumps(config, sort_keys=True, default=str)}".encode())
    digest.update(of_tensors(model.state_dict()).encode())
    return digest.hexdigest()


def of_tensors(tensors: Mapping[str, Any]) -> str:
    """Hex SHA-256 over the names, types, shapes and values of tensors; what else there is has no part."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_rows(rows: "Dataset | None") -> str:
    """Hex SHA-256 over the columns of encoded rows, so that another tokenization or order is another value."""
    digest = hashlib.sha256()
    if rows is not None:
        for batch in rows.with_format("arrow").iter(1000):
            table: Any = batch
            for name in sorted(table.column_names):
                digest.update(f"{name}{table.schema.field(name).type}{table.num_rows}".encode())
                # Buffers may lie in a larger parent; a copy holds these rows alone.
                for chunk in table.column(name).chunks:
                    digest.update(json.dumps(chunk.to_pylist(), default=str).encode())
    return digest.hexdigest()
