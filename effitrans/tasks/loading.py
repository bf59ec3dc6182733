"""From what a user names (a hub name, a folder, `base`, a student spec) to a model and its processor for a task."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from effitrans import checkpoint
from effitrans.errors import UsageError, unknown_name
from effitrans.skeleton import hollow
from effitrans.tasks import KINDS, Task, build_processor, encode
from effitrans.yaml_files import parse_yaml

_MOST_LAYERS, _LARGEST_SIZE = 4096, 2**24
"""Largest settings of a new model that are believed."""


@dataclass(frozen=True)
class Loaded:
    """A model and the tokenizer or image processor that feeds it (None: the task feeds it as it is)."""

    model: PreTrainedModel
    processor: Any | None


def load_for_task(
    spec: str | Path | Mapping[str, Any], task: Task, *, seed: int = 0, processor: Any = None, new_head: bool = False
) -> Loaded:
    """Load or build the model that `spec` names, with the head and labels that `task` needs.

    Args:
        spec: a folder, a hub name, an alias (`minilm`), `base`, `base:hidden_size=64,num_hidden_layers=2`, or the
            mapping `{"base": {"hidden_size": 64}}`, which is what a recipe holds. A model type of transformers in the
            place of `base` builds that architecture with new weights: `{"llama": {"num_key_value_heads": 2}}`.
        task: decides the head, the labels and, for `base`, the vocabulary.
        seed: of newly initialised weights.
        processor: the tokenizer to use with `base` (a teacher's); default: one built from the task.
        new_head: the model will be trained: where its weights have no head for the task, it gets a new one.

    Raises:
        UsageError: the name is unknown, the folder is no model, or its head has other labels than the task.
    """
    torch.manual_seed(seed)
    overrides = base_overrides(spec)
    if overrides is not None:
        return _build_base(overrides, task, processor)
    if isinstance(spec, Mapping):
        return _build_untrained(*_only_entry(spec), task, processor)
    path = checkpoint.find_model(str(spec))
    kind = KINDS[task.kind]
    extra = {} if _has_head(path, kind.auto_class) else dict(kind.config_overrides(task))
    model = checkpoint.load_model(path, kind.auto_class, new_head=new_head, **extra)
    kind.check_model(task, model)
    loaded = Loaded(model, checkpoint.load_processor(path) or processor)
    _ensure_padding(loaded)
    return loaded


def skeleton_for_task(spec: str | Path | Mapping[str, Any], task: Task, *, processor: Any = None) -> Loaded:
    """What `load_for_task` gives, without weights (see `effitrans.skeleton`).

    Raises:
        UsageError: as `load_for_task`, but for weights that are not those of the model.
    """
    import transformers

    from effitrans.checkpoint.quantizer import EffitransQuantizer

    if not is_saved(spec):
        with torch.device("meta"):
            built = load_for_task(spec, task, processor=processor)
        return Loaded(hollow(built.model.eval()), built.processor)
    path, kind = checkpoint.find_model(str(spec)), KINDS[task.kind]
    config = checkpoint.load_config(path)
    if not _has_head(path, kind.auto_class):
        for name, value in kind.config_overrides(task).items():
            setattr(config, name, value)
    quantization = vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        model = getattr(transformers, kind.auto_class).from_config(config).eval()
    if quantization is not None:
        model.config.quantization_config = quantization
        model.is_quantized = True
        manifest = checkpoint.manifest_of(model)
        if manifest.is_structural:
            quantizer = EffitransQuantizer(manifest)
            quantizer._process_model_before_weight_loading(model)
            quantizer._process_model_after_weight_loading(model)
    kind.check_model(task, model)
    loaded = Loaded(hollow(model), checkpoint.load_processor(path) or processor)
    _ensure_padding(loaded)
    return loaded


def load_as_saved(spec: str | Path) -> Loaded:
    """Load a model with the head that it was saved with, for passes that need no task."""
    path = checkpoint.find_model(str(spec))
    return Loaded(checkpoint.load_model(path, None), checkpoint.load_processor(path))


def is_saved(spec: str | Path | Mapping[str, Any]) -> TypeGuard[str | Path]:
    """Whether a spec names a model that has weights, rather than one to be built."""
    return not isinstance(spec, Mapping) and base_overrides(spec) is None


def base_overrides(spec: str | Path | Mapping[str, Any]) -> dict[str, Any] | None:
    """The config values of a base Transformer spec; None if `spec` names something else.

    >>> base_overrides("base:hidden_size=64,position=rotary")
    {'hidden_size': 64, 'position': 'rotary'}
    """
    if isinstance(spec, Mapping):
        model_type, settings = _only_entry(spec)
        return settings if model_type == "base" else None
    name, _, rest = str(spec).partition(":")
    if name != "base" or Path(str(spec)).exists():
        return None
    return dict(parse_assignment(part) for part in rest.split(",") if part)


def _only_entry(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if len(spec) != 1:
        raise UsageError(
            f"a model mapping has one key, `base` or a model type, received {sorted(spec)}: "
            "{base: {hidden_size: 64}}"
        )
    name, settings = next(iter(spec.items()))
    if settings is not None and not isinstance(settings, Mapping):
        raise UsageError(f"model {name}: expected a mapping of its settings, received {settings!r:.60}")
    return str(name), dict(settings or {})


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` with the value read as YAML (`64`, `true`, `0.1`, `[1, 2]`, `text`)."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"expected key=value, received {text!r}")
    return key.strip(), parse_yaml(value, key.strip())


def _has_head(path: str, auto_class: str) -> bool:
    config = checkpoint.load_config(path)
    head = auto_class.removeprefix("AutoModel")
    return not head or any(name.endswith(head) for name in config.architectures or ())


def _ensure_padding(loaded: Loaded) -> None:
    """Decoders such as GPT-2 come without a padding token; they pad with the end-of-text token, masked."""
    tokenizer, config = loaded.processor, loaded.model.config
    if tokenizer is None or not hasattr(tokenizer, "pad_token_id"):
        return
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id


def _build_base(overrides: dict[str, Any], task: Task, processor: Any) -> Loaded:
    from effitrans.models import EffitransConfig

    kind = KINDS[task.kind]
    processor = processor if processor is not None else build_processor(task)
    values: dict[str, Any] = {"form": kind.form, **kind.config_overrides(task), **_vocabulary(processor)}
    if not kind.reads_text:
        pixels = encode(task, "train", processor, limit=1)[0]["pixel_values"]
        values.update(num_channels=pixels.shape[-3], image_size=list(pixels.shape[-2:]))
    if processor is not None and values["form"] == "encoder-decoder":
        values["decoder_start_token_id"] = (
            processor.bos_token_id if processor.bos_token_id is not None else processor.pad_token_id
        )
    known = EffitransConfig().to_dict()
    for name in overrides:
        if name not in known:
            raise unknown_name("base Transformer setting", name, known)
    try:
        config = EffitransConfig(**{**values, **overrides})
    except (TypeError, ValueError) as error:
        raise UsageError(f"base Transformer: {error}") from error
    return Loaded(_new(kind.auto_class, config), processor)


def _new(auto_class: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A model with new weights, if this machine has the memory for it."""
    build = getattr(transformers, auto_class).from_config
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        needed = sum(parameter.numel() * parameter.element_size() for parameter in build(config).parameters())
    if needed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise UsageError(
            f"the weights of this {config.model_type} model take {needed / 1e9:,.1f} GB and this machine has "
            f"{memory / 1e9:,.1f} GB of memory: give it fewer layers, a smaller width or a smaller vocabulary"
        )
    return build(config)


def _build_untrained(model_type: str, settings: dict[str, Any], task: Task, processor: Any) -> Loaded:
    """An architecture of transformers with new weights."""
    from huggingface_hub.errors import StrictDataclassError

    if model_type not in transformers.CONFIG_MAPPING:
        raise UsageError(
            f"unknown model {model_type!r}: a model mapping names `base`, or a model type of transformers, such as "
            "{llama: {hidden_size: 64}}"
        )
    known = AutoConfig.for_model(model_type).to_dict()
    for name, value in settings.items():
        if name not in known:
            raise unknown_name(f"setting of {model_type}", name, known)
        if isinstance(value, int) and value > (largest := _MOST_LAYERS if "layer" in name else _LARGEST_SIZE):
            raise UsageError(f"{model_type}: {name} is at most {largest}, received {value}")
    kind = KINDS[task.kind]
    processor = processor if processor is not None else build_processor(task)
    values = {**kind.config_overrides(task), **_vocabulary(processor), **settings}
    try:
        model = _new(kind.auto_class, AutoConfig.for_model(model_type, **values))
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UsageError(f"{model_type}: {error}") from error
    return Loaded(model, processor)


def _vocabulary(processor: Any) -> dict[str, Any]:
    """What a config says of the tokenizer; nothing where there is none."""
    if processor is None:
        return {}
    special = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {"vocab_size": len(processor), **{name: getattr(processor, name) for name in special}}
