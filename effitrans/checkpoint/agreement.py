"""`settle`: what all layers agree on stands in the config, so that the manifest need not say it for each of them.

A pruned model whose layers have one size is then what its architecture builds, and loads anywhere; what else reads
sizes from the config, such as the caches of `generate`, reads the right ones. Configs without a `head_dim` are given
one where the heads no longer fill the hidden size; an architecture that does not read it has it in the manifest.
Where layers differ, static caches take their shape from each layer.
"""

from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

from effitrans.checkpoint.manifest import Manifest, diff, skeleton


def settle(model: PreTrainedModel) -> None:
    """Write the sizes that all layers have into the model's config, where its architecture can be built with them."""
    # Not at the top: this module is imported when transformers is, which the adapters import first.
    from effitrans.architectures import ARCHITECTURES, adapter

    if getattr(model.config, "model_type", None) not in ARCHITECTURES:
        return
    expected, found = (adapter(each).agreed_sizes() for each in (skeleton(model), model))
    head_dim = {name: value for name, value in found["attention"].items() if name == "head_dim"}
    changes = []
    for kind, sizes in found.items():
        changed = {name: value for name, value in sizes.items() if expected[kind].get(name) != value}
        if changed.keys() - head_dim.keys():
            changes.append(changed if kind == "ffn" else {**changed, **head_dim})
    together = {name: value for change in changes for name, value in change.items()}
    if changes and not _write(model, together) and len(changes) > 1:
        for change in changes:
            _write(model, change)


def _write(model: PreTrainedModel, values: dict[str, int]) -> bool:
    """Set attributes of the config, unless it cannot be built with them or is then further from the model."""
    config: Any = model.config
    before, old = _distance(model), {name: getattr(config, name, None) for name in values}
    new = [name for name in values if not hasattr(config, name)]
    _set(config, values)
    try:
        type(config).from_dict(config.to_dict())
        after = _distance(model)
        fits = all(mine <= theirs for mine, theirs in zip(after, before, strict=True))
    except (ValueError, StrictDataclassError):
        fits = False
    if fits:
        for part in {
            id(module.config): module.config for module in model.modules() if hasattr(module, "config")
        }.values():
            if type(part) is type(config):
                _set(part, values)
    else:
        _set(config, old)
        for name in new:
            delattr(config, name)
    return fits


def _set(config: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(config, name, value)


def _distance(model: nn.Module) -> tuple[int, int]:
    """How many computed buffers have another shape than the config builds, and how many tensors of the manifest do."""
    modules, _ = diff(model)
    built = dict(skeleton(model).named_buffers(remove_duplicate=False))
    buffers = model.named_buffers(remove_duplicate=False)
    computed = sum(name in built and built[name].shape != buffer.shape for name, buffer in buffers)
    return computed, sum(len(entry.get("shapes", (0,))) for entry in modules.values())


def lay_out_caches(model: PreTrainedModel, manifest: Manifest) -> None:
    """Let static caches take the shape of keys and values from the layers, unless the config tells it of all of them.

    `generate` asks a model for one shape beforehand, where a prompt is read in chunks.
    """
    if manifest.is_structural and hasattr(model, "_get_static_cache_init_shape"):
        vars(model)["_get_static_cache_init_shape"] = _no_common_shape
    else:
        vars(model).pop("_get_static_cache_init_shape", None)


def _no_common_shape() -> None:
    """What `_get_static_cache_init_shape` gives for a cache whose layers are laid out by what they first hold."""
