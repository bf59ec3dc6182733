"""Load and save model folders, with the checks that make a bad folder one clear message."""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from effitrans.accepting import as_model
from effitrans.checkpoint import quantizer
from effitrans.errors import CheckpointError, UsageError
from effitrans.files import output_directory

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack")


def check_model_folder(folder: Path) -> dict[str, Any]:
    """Return the parsed `config.json` of a model folder.

    Raises:
        CheckpointError: no config, a config that is no JSON object, no weights, pickled weights only, or a
            weights file that is damaged.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds adapters (LoRA) of a model and not the model: load it with peft "
            "(AutoPeftModelForSequenceClassification.from_pretrained and its like), call merge_and_unload() on it and "
            "save what that returns with effitrans.checkpoint.save"
        )
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise CheckpointError(
            f"{folder} is not a model folder: it has no config.json. Expected a folder written by save_pretrained, "
            "or the name of a model on the hub."
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config_file} is not valid JSON ({error}): save or download the model again") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{config_file} names no model_type: it is not the config of a transformers model")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [file.name for pattern in _PICKLES for file in folder.glob(pattern)]
        if pickles:
            raise CheckpointError(
                f"{folder} holds pickled weights only ({pickles[0]}), which can run code when loaded and are refused: "
                "convert them to safetensors (load with transformers where you trust the file, then save_pretrained)"
            )
        raise CheckpointError(f"{folder} has a config.json but no *.safetensors weights")
    quantizer.read_shapes(weights)
    return config


def load_model(path_or_name: str | Path, auto_class: str | None = "AutoModel", **kwargs: Any) -> PreTrainedModel:
    """Load a compressed or ordinary model from a folder or the hub, in evaluation mode.

    Args:
        path_or_name: a local folder, or a hub name.
        auto_class: name of the transformers Auto class ("AutoModelForSequenceClassification"); None for the class
            that the folder was saved from.
        kwargs: passed to `from_pretrained` (`num_labels=...`, `dtype=...`).

    Raises:
        CheckpointError: the folder is no model, or is damaged (see `check_model_folder`).
        UsageError: neither a folder nor a model that the hub or its cache has.
    """
    folder = Path(path_or_name)
    if folder.is_dir():
        check_model_folder(folder)
    elif folder.is_file() or str(path_or_name).startswith((".", "/", "~")):
        raise CheckpointError(f"{path_or_name} is not a folder: name a model folder, or a model on the hub")
    try:
        model_class = getattr(transformers, auto_class) if auto_class else _saved_class(str(path_or_name))
        return model_class.from_pretrained(str(path_or_name), **kwargs)
    except CheckpointError:
        raise
    except OSError as error:
        if getattr(error, "errno", None) is not None and folder.is_dir():
            raise
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"cannot load {str(path_or_name)!r}: no such folder, and the hub gave no such model ({first_line})"
        ) from error


def load_config(folder: str | Path) -> transformers.PreTrainedConfig:
    """The config of a checked model folder.

    Raises:
        CheckpointError: see `check_model_folder`, or a model_type that this transformers does not know.
    """
    check_model_folder(Path(folder))
    try:
        return transformers.AutoConfig.from_pretrained(str(folder))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _saved_class(path_or_name: str) -> Any:
    names = transformers.AutoConfig.from_pretrained(path_or_name).architectures or ["none"]
    import effitrans.models

    for library in (transformers, effitrans.models):
        if hasattr(library, names[0]):
            return getattr(library, names[0])
    raise CheckpointError(f"{path_or_name}: config.json names the architecture {names[0]!r}, which is not known here")


def load_processor(path_or_name: str | Path) -> Any | None:
    """The tokenizer or image processor saved beside a model; None where there is none."""
    folder = Path(path_or_name)
    if not folder.is_dir():
        try:
            return transformers.AutoTokenizer.from_pretrained(str(path_or_name))
        except (OSError, ValueError):
            return transformers.AutoImageProcessor.from_pretrained(str(path_or_name))
    if (folder / "tokenizer_config.json").exists() or (folder / "tokenizer.json").exists():
        return transformers.AutoTokenizer.from_pretrained(str(folder))
    if (folder / "preprocessor_config.json").exists():
        return transformers.AutoImageProcessor.from_pretrained(str(folder))
    return None


def save(
    model: PreTrainedModel, directory: str | Path, processor: Any | None = None, *, overwrite: bool = False
) -> None:
    """Write the model, its manifest and its tokenizer or image processor; whole or not at all.

    Raises:
        UsageError: the folder exists and is not empty and `overwrite` is false.
    """
    model = as_model(model)
    with output_directory(directory, overwrite) as temporary:
        model.save_pretrained(temporary)
        if processor is not None:
            processor.save_pretrained(temporary)


def bytes_on_disk(directory: str | Path) -> int:
    """Bytes of all weight files of a model folder (tokenizer and config not counted)."""
    return sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
