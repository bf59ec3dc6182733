"""Predictions kept on disk, so that a baseline is not scored again beside every model that is compared with it.

An entry is found by the content of everything that decides it: the files of the model folder, the data, how much of
it in what batches, effitrans' own source, the versions of torch and transformers, the processor and its threads.
A change of any of them is another key. An entry starts with the SHA-256 of the rest; one that does not fit is
thrown away and made again.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from effitrans.evaluation.provenance import PACKAGE, device_name
from effitrans.files import cache_directory, sha256_json
from effitrans.tasks.predictions import Predictions

if TYPE_CHECKING:
    from effitrans.tasks import Task

logger = logging.getLogger(__name__)

_DIGEST = hashlib.sha256().digest_size
_NOT_OF_THE_MODEL = ("README.md", "record.json", "step.json", ".gitattributes")
"""Files of a model folder that say something about it and do not change what it computes."""


def predictions_key(
    folder: Path, task: "Task", split: str, *, batch_size: int, limit: int | None, device: torch.device, dtype: str
) -> str:
    """The name of an entry: a SHA-256 over all that decides the predictions."""
    return sha256_json(
        {
            "model": folder_fingerprint(folder),
            "dtype": dtype,
            "task": task.model_dump(mode="json"),
            "data": task.fingerprint(split),
            "split": split,
            "limit": limit,
            "batch_size": batch_size,
            "code": code_fingerprint(),
            "versions": [torch.__version__, transformers.__version__, np.__version__],
            "machine": [device_name(device), torch.get_num_threads()],
        }
    )


def cached(key: str, compute: Callable[[], Predictions]) -> Predictions:
    """The predictions under `key`; computed, and kept, where there are none or they are damaged."""
    path = cache_directory("predictions") / f"{key}.bin"
    if path.is_file():
        found = _read(path)
        if found is not None:
            logger.info("predictions found in %s", path)
            return found
        logger.warning("%s is damaged: predicting again", path)
    result = compute()
    try:
        _write(path, result)
    except OSError as error:
        logger.warning("predictions are not kept: %s", error)
    return result


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's files: weights, configs, tokenizer."""
    digest = hashlib.sha256()
    # Poolings of sentence-transformers have folders of their own.
    for path in sorted([*folder.iterdir(), *folder.glob("*/config.json")]):
        if path.is_file() and path.name not in _NOT_OF_THE_MODEL:
            digest.update(f"{path.relative_to(folder)}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """SHA-256 over the source of effitrans."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Predictions | None:
    content = path.read_bytes()
    payload = content[_DIGEST:]
    if hashlib.sha256(payload).digest() != content[:_DIGEST]:
        return None
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
            lists = json.loads(stored["lists"].item())
            arrays = {name: stored[name] for name in stored.files if name != "lists"}
    except (ValueError, KeyError, zipfile.BadZipFile, json.JSONDecodeError):
        return None
    return Predictions(**{name: _tupled(values) for name, values in lists.items()}, **arrays)


def _tupled(values: Any) -> Any:
    """JSON has no tuples; the acceptable texts of an extractive answer are one."""
    return values if values is None else [tuple(v["tuple"]) if isinstance(v, dict) else v for v in values]


def _write(path: Path, predictions: Predictions) -> None:
    lists, arrays = {}, {}
    for field in dataclasses.fields(predictions):
        value = getattr(predictions, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        else:
            lists[field.name] = value and [
                {"tuple": v} if isinstance(v, tuple) else v.item() if isinstance(v, np.generic) else v for v in value
            ]
    buffer = io.BytesIO()
    np.savez(buffer, lists=np.array(json.dumps(lists)), **arrays)
    payload = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(hashlib.sha256(payload).digest() + payload)
    os.replace(file.name, path)
