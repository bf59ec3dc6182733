"""The structure of a model as plain JSON facts: what `effitrans inspect` prints and reports draw."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.architectures import adapter
from effitrans.architectures.structure import AttentionSite, Layer
from effitrans.errors import UsageError


def describe(model: PreTrainedModel, bytes_on_disk: int | None = None) -> dict[str, Any]:
    """Facts about a model: class, sizes, one entry a layer, and the history of passes.

    Args:
        model: any transformers model. Without an adapter for its architecture, `layers` is empty.
        bytes_on_disk: bytes of its weight files, where it lies on disk.

    Returns:
        `{"architecture", "model_type", "parameters", "dtypes": {dtype: elements}, "bytes_on_disk",
        "layers": [{"layer", "attention", "heads", "kv_heads", "head_dim", "ffn", "weights"}], "history"}`.
    """
    dtypes = count_elements(model)
    return {
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "parameters": sum(dtypes.values()),
        "dtypes": dict(dtypes.most_common()),
        "bytes_on_disk": bytes_on_disk,
        "layers": describe_layers(model),
        "history": checkpoint.history(model),
    }


def describe_layers(model: PreTrainedModel) -> list[dict[str, Any]]:
    """One entry a layer; a layer with cross-attention has one more for it. Empty without an adapter."""
    try:
        layers = adapter(model).layers
    except UsageError:
        return []
    return [entry for layer in layers for entry in _layer_entries(layer)]


def _layer_entries(layer: Layer) -> list[dict[str, Any]]:
    weights = ", ".join(name for name, _ in count_elements(layer.module).most_common(1))
    entries = []
    for position, site in enumerate(layer.attention):
        entries.append(
            {
                "layer": f"{layer.stack} {layer.index}" + (" cross" if site.is_cross else ""),
                "attention": _operator(site),
                "heads": site.num_heads,
                "kv_heads": site.num_key_value_heads,
                "head_dim": site.head_dim,
                "ffn": layer.feed_forward.width if position == 0 else None,
                "weights": weights,
            }
        )
    return entries


def _operator(site: AttentionSite) -> str:
    operator = getattr(site.module, "attention_operator", None)
    return "full" if operator is None else str(operator.spec().get("name", "?"))


def count_elements(module: nn.Module) -> Counter[str]:
    """Elements by dtype ("float32") of all parameters and of integer buffers that are saved; tied tensors once."""
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    tensors = dict(module.named_parameters(remove_duplicate=False))
    tensors.update((name, t) for name, t in module.state_dict(keep_vars=True).items() if t.dtype == torch.int8)
    for tensor in tensors.values():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return counts
