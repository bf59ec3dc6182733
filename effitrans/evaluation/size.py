"""How large a model is: weights, those that are not zero, bits stored for each; and its structure layer by layer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.evaluation.record import LayerStructure, Structure

INTEGER_WEIGHTS = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
"""A stored buffer of one of these types holds weights; other buffers (scales, statistics) describe them."""


def weight_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of every weight: parameters, and integer weights kept as buffers. Tied weights come once."""
    for name, tensor, is_weight in _stored(model):
        if is_weight:
            yield name, tensor


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield (name, tensor, whether it holds weights) of what a checkpoint stores, shared tensors once."""
    seen: set[int] = set()
    parameters = {id(parameter) for parameter in model.parameters()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor, id(tensor) in parameters or tensor.dtype in INTEGER_WEIGHTS


def parameters(model: nn.Module) -> int:
    """Number of weights.

    >>> parameters(nn.Linear(3, 2))
    8
    """
    return sum(tensor.numel() for _, tensor in weight_tensors(model))


def nonzero_parameters(model: nn.Module) -> int:
    """Number of weights that are not zero."""
    return sum(int(torch.count_nonzero(tensor)) for _, tensor in weight_tensors(model))


def bits_per_weight(model: nn.Module) -> float:
    """Bits stored for each weight, with scales and everything else that the checkpoint needs."""
    stored = sum(tensor.numel() * tensor.element_size() for _, tensor, _ in _stored(model))
    return 8 * stored / max(1, parameters(model))


def structure(model: PreTrainedModel) -> Structure:
    """Heads, widths, bits and attention operator of each layer.

    A model without an architecture adapter gets the totals and no layers.
    """
    config = model.config
    embedding = model.get_input_embeddings()
    embedded = [tensor for _, tensor in weight_tensors(embedding)] if isinstance(embedding, nn.Module) else []
    return Structure(
        architecture=type(model).__name__,
        hidden_size=getattr(config, "hidden_size", None),
        vocab_size=getattr(config, "vocab_size", None),
        embedding_parameters=sum(tensor.numel() for tensor in embedded) or None,
        embedding_bits=_mean_bits(embedded),
        layers=_layers(model),
    )


def _layers(model: PreTrainedModel) -> tuple[LayerStructure, ...]:
    from effitrans.architectures import adapter

    try:
        layers = adapter(model).layers
    except UsageError:
        return ()
    rows = []
    for layer in layers:
        site = layer.attention[0] if layer.attention else None
        rows.append(
            LayerStructure(
                name=layer.path,
                heads=site.num_heads if site else None,
                kv_heads=site.num_key_value_heads if site else None,
                head_dim=site.head_dim if site else None,
                ffn=layer.feed_forward.width,
                bits=_mean_bits([tensor for _, tensor in weight_tensors(layer.module) if tensor.dim() > 1]),
                operator=operator_name(site.module) if site else None,
            )
        )
    return tuple(rows)


def operator_name(attention: nn.Module) -> str:
    """Name of the attention operator attached to an attention module; "full" where there is none."""
    operator: Any = getattr(attention, "attention_operator", None)
    return "full" if operator is None else str(operator.config.name)


def _mean_bits(tensors: list[Tensor]) -> float | None:
    count = sum(tensor.numel() for tensor in tensors)
    return 8 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) / count if count else None
