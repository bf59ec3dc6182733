"""`record`: what every pass calls when it is done."""

from collections.abc import Mapping
from typing import Any

import pydantic
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from effitrans import __version__
from effitrans.checkpoint.agreement import lay_out_caches, settle
from effitrans.checkpoint.manifest import Manifest, diff


def manifest_of(model: PreTrainedModel | PreTrainedConfig) -> Manifest:
    """The manifest that a model, or its config, carries; an empty one if no pass has run."""
    config = getattr(model, "config", model)
    stored = getattr(config, "quantization_config", None)
    if isinstance(stored, Manifest):
        return stored
    if isinstance(stored, dict) and stored.get("quant_method") == "effitrans":
        return Manifest(**stored)
    return Manifest(history=getattr(config, "effitrans_history", None))


def history(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The passes that made this model, oldest first: `{"verb", "config", "summary", "effitrans"}`."""
    return manifest_of(model).history


def record(
    model: PreTrainedModel, verb: str, config: pydantic.BaseModel | Mapping[str, Any], **summary: Any
) -> Manifest:
    """Bring the manifest in `model.config` up to date with the model, and add a pass to its history.

    What all layers agree on goes into the config itself (see `settle`). A model whose structure is then what its
    architecture builds (trained, with fewer layers, with equally fewer neurons in each) gets no `quantization_config`,
    only `effitrans_history`: it loads anywhere, with or without effitrans.

    Args:
        model: the model, already changed.
        verb: the pass ("prune").
        config: its config.
        summary: JSON-serializable facts about the outcome (`parameters_before=..., parameters_after=...`).

    Raises:
        CheckpointError: the model holds a module that the manifest cannot describe.
    """
    values = config.model_dump(mode="json") if isinstance(config, pydantic.BaseModel) else dict(config)
    settle(model)
    entry = {"verb": verb, "config": values, "summary": summary, "effitrans": __version__}
    modules, attributes = diff(model)
    manifest = Manifest(modules=modules, attributes=attributes, history=[*history(model), entry])
    if manifest.is_structural:
        model.config.quantization_config = manifest
        vars(model.config).pop("effitrans_history", None)
    else:
        vars(model.config).pop("quantization_config", None)
        model.config.effitrans_history = manifest.history
    mark_trainability(model, manifest)
    lay_out_caches(model, manifest)
    return manifest


def is_frozen(model: nn.Module) -> bool:
    """Whether the model holds modules that cannot be trained (integer weights)."""
    return any(not getattr(type(module), "trainable", True) for module in model.modules())


def mark_trainability(model: PreTrainedModel, manifest: Manifest) -> None:
    """Tell transformers whether the model is quantized.

    A model flagged so is refused by `Trainer`; a pruned or swapped model is an ordinary one, so it carries the
    manifest in its config and no flag.
    """
    from effitrans.checkpoint.quantizer import EffitransQuantizer

    if is_frozen(model):
        model.hf_quantizer = EffitransQuantizer(manifest)  # type: ignore[assignment]
        model.is_quantized = True  # type: ignore[assignment]
        model.quantization_method = "effitrans"  # type: ignore[assignment]
    else:
        for name in ("hf_quantizer", "quantization_method"):
            vars(model).pop(name, None)
        model.is_quantized = False  # type: ignore[assignment]
