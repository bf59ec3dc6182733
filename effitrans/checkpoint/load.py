"""Load model folders, with the checks that make a bad folder one clear message."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from effitrans.checkpoint.beside import has_tokenizer
from effitrans.checkpoint.folder import check_model_folder, find_model, weight_files
from effitrans.checkpoint.loaded import check_loaded, check_size
from effitrans.checkpoint.record import manifest_of
from effitrans.errors import CheckpointError, UsageError


def load_model(
    path_or_name: str | Path, auto_class: str | None = "AutoModel", *, new_head: bool = False, **kwargs: Any
) -> PreTrainedModel:
    """Load a compressed or ordinary model from a folder or the hub, in evaluation mode.

    Args:
        path_or_name: a local folder, or a hub name.
        auto_class: name of the transformers Auto class ("AutoModelForSequenceClassification"); None for the class
            that the folder was saved from.
        new_head: accept weights without the head that the class has; it gets a new one, which is to be trained.
        kwargs: passed to `from_pretrained` (`num_labels=...`, `dtype=...`).

    Raises:
        CheckpointError: the folder is no model or is damaged (see `check_model_folder`), or its weights are not those
            of the model that its config describes (see `check_loaded`).
        UsageError: neither a folder nor a model that the hub or its cache has.
    """
    name = find_model(path_or_name)
    config = load_config(name)
    model_class = getattr(transformers, auto_class) if auto_class else _saved_class(name, config)
    if Path(name).is_dir():
        check_size(_skeleton(name, model_class, config), config, weight_files(Path(name)))
    try:
        # Mismatched shapes are among what is found afterwards, by name.
        model, info = model_class.from_pretrained(
            name, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
    except CheckpointError:
        raise
    except (OSError, ImportError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise UsageError(f"cannot load {name!r}: {_first_line(error)}") from error
    check_loaded(name, model, info, new_head)
    return model


def load_config(path_or_name: str | Path) -> transformers.PreTrainedConfig:
    """The config of a model; a folder is checked first.

    Raises:
        CheckpointError: see `check_model_folder`, or a config that this transformers cannot read.
        UsageError: neither a folder nor a model that the hub or its cache has.
    """
    name = find_model(path_or_name)
    if not Path(name).is_dir():
        try:
            return transformers.AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"model {name!r}: there is no folder {Path(name).absolute()}, and neither the hub nor its cache gave "
                f"such a model ({_first_line(error)})"
            ) from error
    check_model_folder(Path(name))
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        manifest_of(config)
    except CheckpointError:
        raise
    except Exception as error:  # whatever the classes of transformers make of values that nobody checked
        raise CheckpointError(f"{name}: transformers cannot read its config.json ({_first_line(error)})") from error
    return config


def require_model(path_or_name: str | Path) -> str:
    """As `find_model`, for a model that is there and whose config can be read.

    Raises:
        CheckpointError, UsageError: as `load_config`.
    """
    load_config(path_or_name)
    return find_model(path_or_name)


def _skeleton(name: str, model_class: Any, config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """The model that the config describes, on the meta device, before its manifest."""
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)
    build = model_class._from_config if issubclass(model_class, PreTrainedModel) else model_class.from_config
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build(config)
    except Exception as error:  # as above
        raise CheckpointError(
            f"{name}: its config.json does not describe a {model_class.__name__} ({_first_line(error)})"
        ) from error


def _saved_class(name: str, config: transformers.PreTrainedConfig) -> Any:
    import effitrans.models

    names = config.architectures or ["none"]
    for library in (transformers, effitrans.models):
        found = getattr(library, names[0], None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    raise CheckpointError(f"{name}: config.json names the architecture {names[0]!r}, which is not known here")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def load_processor(path_or_name: str | Path) -> Any | None:
    """The tokenizer or image processor saved beside a model; None where there is none.

    Raises:
        CheckpointError: no such folder, or damaged files.
    """
    folder = Path(find_model(path_or_name))
    if not folder.is_dir():
        for processors in (transformers.AutoTokenizer, transformers.AutoImageProcessor):
            try:
                return processors.from_pretrained(str(folder))
            except (OSError, ValueError, ImportError):  # a package that image processors need
                continue
        load_config(path_or_name)  # says so where there is no such model
        return None
    processors = transformers.AutoTokenizer if has_tokenizer(folder) else transformers.AutoImageProcessor
    if not has_tokenizer(folder) and not (folder / "preprocessor_config.json").exists():
        return None
    try:
        processor = processors.from_pretrained(str(folder))
        if isinstance(processor, transformers.PreTrainedTokenizerBase):
            _try(processor)
        return processor
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers library raises no class of its own, and panics beside Exception
        raise CheckpointError(
            f"{path_or_name}: its tokenizer or image processor cannot be read ({_first_line(error)}): take "
            "the files of the folder that the model was saved from, or pass processor"
        ) from error


def processor_beside(model: Any) -> Any | None:
    """The tokenizer or image processor of the folder or hub repository that a model was loaded from; None if there is
    none, or it was built anew.

    Raises:
        CheckpointError: the folder is there, and its files are damaged.
    """
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    if Path(name).is_dir() and name:
        return load_processor(name)
    try:
        return load_processor(name) if name else None
    except (OSError, ValueError):  # the folder is gone, or the hub out of reach
        return None


def _try(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Encode once: files that can be read may hold what fails in use."""
    if not isinstance(tokenizer.model_max_length, int | float):
        raise TypeError(f"model_max_length is {tokenizer.model_max_length!r}")
    if isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        tokenizer.backend_tokenizer.encode("a text", "another")


def bytes_on_disk(directory: str | Path) -> int:
    """Bytes of all weight files of a model folder (tokenizer and config not counted)."""
    return sum(file.stat().st_size for file in weight_files(Path(directory)))
