"""How large a model is: weights, those that are not zero, bits stored for each; and its structure layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from effitrans.evaluation.record import LayerStructure, Structure
from effitrans.quantization.modules import FixedTypes

if TYPE_CHECKING:
    from effitrans.architectures import Layer

INTEGER_WEIGHTS = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
"""A stored buffer of one of these types holds weights; other buffers (scales, statistics) describe them."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint."""

    name: str
    tensor: Tensor
    count: int
    """Weights that it holds; none in a scale, several to a byte in a packed one."""
    expanded: Callable[[], Tensor]
    """The weights one by one, for what must look at them."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return _nbytes(self.tensor)


def _nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor; those of its parts where it is a wrapper around others, as torchao makes them."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return sum(_nbytes(getattr(tensor, name)) for name in names)
    return tensor.nbytes


def stored_tensors(model: nn.Module) -> Iterator[Stored]:
    """What a checkpoint stores, shared tensors once: parameters, integer weights kept as buffers, and the rest."""
    seen: set[int] = set()
    parameters = {id(parameter) for parameter in model.parameters()}
    packed: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, FixedTypes) and module.is_packed
    }
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        path, _, attribute = name.rpartition(".")
        module = packed.get(path)
        if module is not None and attribute == "weight":
            yield Stored(name, tensor, module.in_features * module.out_features, module.dequantized)
        elif module is not None and attribute in ("zero_point", "absmax"):
            yield Stored(name, tensor, 0, tensor.detach)
        else:
            is_weight = id(tensor) in parameters or tensor.dtype in INTEGER_WEIGHTS
            expanded = tensor.dequantize if is_traceable_wrapper_subclass(tensor) else tensor.detach
            yield Stored(name, tensor, tensor.numel() if is_weight else 0, expanded)


def parameters(model: nn.Module) -> int:
    """Number of weights.

    >>> parameters(nn.Linear(3, 2))
    8
    """
    return sum(stored.count for stored in stored_tensors(model))


def nonzero_parameters(model: nn.Module) -> int:
    """Number of weights that are not zero."""
    return sum(int(torch.count_nonzero(stored.expanded())) for stored in stored_tensors(model) if stored.count)


def bits_per_weight(model: nn.Module) -> float:
    """Bits stored for each weight, with scales and everything else that the checkpoint needs."""
    total = sum(stored.nbytes for stored in stored_tensors(model))
    return 8 * total / max(1, parameters(model))


def structure(model: PreTrainedModel) -> Structure:
    """Heads, widths, bits and attention operator of each layer.

    A model without an architecture adapter, or with modules of another tool, gets the totals and no layers.
    """
    config = model.config
    embedding = model.get_input_embeddings()
    embedded = _weights(embedding) if isinstance(embedding, nn.Module) else []
    return Structure(
        architecture=type(model).__name__,
        hidden_size=_hidden_size(model, embedding),
        vocab_size=getattr(config, "vocab_size", None),
        embedding_parameters=sum(stored.count for stored in embedded) or None,
        embedding_bits=_mean_bits(embedded),
        layers=_layers(model),
    )


def _hidden_size(model: PreTrainedModel, embedding: Any) -> int | None:
    """The width of the residual stream, which a pruned model's config does not tell: that of the embedding of tokens or
    patches, in families that add it to the stream as it is."""
    from effitrans.architectures import ARCHITECTURES

    configured = getattr(model.config, "hidden_size", None)
    if getattr(model.config, "model_type", None) not in ARCHITECTURES:
        return configured
    of_patches = getattr(getattr(embedding, "projection", None), "weight", None)
    return getattr(embedding, "embedding_dim", configured if of_patches is None else len(of_patches))


def _layers(model: PreTrainedModel) -> tuple[LayerStructure, ...]:
    from effitrans.architectures import ARCHITECTURES, adapter

    if model.config.model_type not in ARCHITECTURES or not _has_layout(model):
        return ()
    layers = adapter(model).layers
    return tuple(_layer_rows(layers)) if all(map(_readable, _linears(layers))) else ()


def _has_layout(model: PreTrainedModel) -> bool:
    """Whether the modules are those of its family; a wrapper around another runtime has the config alone."""
    return any(cls.__module__.startswith(("transformers.models.", "effitrans.models.")) for cls in type(model).__mro__)


def _linears(layers: "Sequence[Layer]") -> Iterator[nn.Module]:
    """The modules that the widths are read from."""
    for layer in layers:
        for site in layer.attention[:1]:
            yield from (site.query.module, site.key.module)
        yield layer.feed_forward.output


def _readable(module: nn.Module) -> bool:
    """Whether a linear module keeps its weight as a tensor; `torch.ao.nn.quantized` gives a method of that name."""
    from effitrans.architectures.absent import Zero

    return isinstance(module, Zero) or isinstance(getattr(module, "weight", None), Tensor)


def _layer_rows(layers: "Sequence[Layer]") -> Iterator[LayerStructure]:
    for layer in layers:
        site = layer.attention[0] if layer.attention else None
        yield LayerStructure(
            name=layer.path,
            heads=site.num_heads if site else None,
            kv_heads=site.num_key_value_heads if site else None,
            head_dim=site.head_dim if site else None,
            ffn=layer.feed_forward.width,
            bits=_mean_bits([stored for stored in _weights(layer.module) if _is_matrix(stored.tensor)]),
            operator=operator_name(site.module) if site else None,
        )


def _is_matrix(tensor: Tensor) -> bool:
    """Whether this is a weight, rather than a bias or a norm; integers may be stored as one row of bytes."""
    return tensor.dim() > 1 or not tensor.is_floating_point()


def operator_name(attention: nn.Module) -> str:
    """Name of the attention operator attached to an attention module; "full" where there is none."""
    operator: Any = getattr(attention, "attention_operator", None)
    return "full" if operator is None else str(operator.config.name)


def _weights(module: nn.Module) -> list[Stored]:
    return [stored for stored in stored_tensors(module) if stored.count]


def _mean_bits(weights: list[Stored]) -> float | None:
    count = sum(stored.count for stored in weights)
    return 8 * sum(stored.nbytes for stored in weights) / count if count else None
