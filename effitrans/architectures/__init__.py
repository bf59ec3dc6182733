"""Architecture adapters: where a family of models keeps its projections, FFNs, layers and head counts.

A family is one small file with a function `describe(model) -> Architecture`, and one line in `ARCHITECTURES`.
"""

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from effitrans.architectures import bart, base, bert, distilbert, gpt2, llama, t5, vit
from effitrans.architectures.structure import (
    Architecture,
    AttentionSite,
    FeedForwardSite,
    HeadTensor,
    Layer,
    Projection,
    Stack,
    evenly_chosen,
    in_features,
    out_features,
)
from effitrans.errors import UsageError

ARCHITECTURES: dict[str, Callable[[PreTrainedModel], Architecture]] = {
    "bart": bart.describe,
    "bert": bert.describe,
    "distilbert": distilbert.describe,
    "effitrans": base.describe,
    "gpt2": gpt2.describe,
    "llama": llama.describe,
    "mistral": llama.describe,
    "qwen2": llama.describe,
    "roberta": bert.describe,
    "t5": t5.describe,
    "vit": vit.describe,
}
"""`config.model_type` -> the function that describes such a model."""


def adapter(model: nn.Module) -> Architecture:
    """Describe a model.

    Args:
        model: a transformers model of a family in `ARCHITECTURES`, with or without a task head.

    Raises:
        UsageError: the family has no adapter; the message names it and lists those that have one.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, PreTrainedModel) or model_type not in ARCHITECTURES:
        received = f"architecture {model_type!r} ({type(model).__name__})" if model_type else type(model).__name__
        raise UsageError(
            f"{received} has no adapter, so its layers, heads and FFNs cannot be found. "
            f"Use a model of one of these architectures: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[model_type](model)


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "AttentionSite",
    "FeedForwardSite",
    "HeadTensor",
    "Layer",
    "Projection",
    "Stack",
    "adapter",
    "evenly_chosen",
    "in_features",
    "out_features",
]
