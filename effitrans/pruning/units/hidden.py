"""Hidden width: channels of the residual stream leave everything that reads, writes or normalises them.

Which dimensions of which tensors those are is not listed by hand: the architecture is built on the meta device a
second time, with twice the hidden size, and the dimensions that grew carry it. The insides of attention and FFN
grow too, where their widths follow from the hidden size; the adapter says which those are, and they stay. So
embeddings, norms, projections, poolers and task heads become what the architecture would build with a smaller
hidden size, with heads and neurons as they were, and tied tensors stay tied.

What is left computes what the model computes with those channels taken out of the stream and norms taken over the
channels that remain. It is not the model with channels silenced: a norm divides by the number of its channels.

Channels are scored like every other unit, by the weights of the layers that read and write them.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effitrans.architectures import Architecture, AttentionSite, Layer, adapter, in_features
from effitrans.architectures.absent import Zero
from effitrans.checkpoint.manifest import skeleton
from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.pruning.sites import PruningSite, Slice, require_plain, spread
from effitrans.pruning.slicing import Side
from effitrans.pruning.units.base import Ratio, RatioUnit

STREAM = "residual stream"
"""Name of the one site that the channels are."""


class HiddenSettings(Config):
    """What `Pruning` says of the hidden width."""

    hidden: Ratio = 0.0
    """Fraction of the channels of the residual stream to remove, 0 to 1: embeddings, norms, all that reads and writes
    the stream, and task heads become narrower."""


class Hidden(RatioUnit):
    """Channels of the residual stream."""

    setting = "hidden"
    help = "Fraction of the hidden width removed."
    settings = HiddenSettings
    reads = ("multiple_of",)

    def sites(self, layers: Sequence[Layer], config: Any = None) -> list[PruningSite]:
        return stream_sites(layers)

    def why_nothing(self, sites: Sequence[PruningSite], config: Any) -> str:
        return (
            f"hidden={config.hidden:g} removes nothing from a hidden width of {sites[0].units} when it is "
            f"rounded to a multiple of {config.multiple_of}: raise the ratio or set multiple_of=1"
        )

    def check(self, architecture: Architecture) -> None:
        carriers(architecture)

    def remove(self, model: PreTrainedModel, site: PruningSite, parts: Sequence[int]) -> None:
        narrow(adapter(model), parts)

    def sizes(self, architecture: Architecture) -> set[int]:
        return {architecture.hidden_size}


_WIDTHS: dict[type[nn.Module], tuple[tuple[str, int], ...]] = {
    nn.Linear: (("out_features", 0), ("in_features", 1)),
    Conv1D: (("nx", 0), ("nf", 1)),
    nn.Embedding: (("embedding_dim", 1),),
    nn.Conv2d: (("out_channels", 0),),
}
"""Class -> (attribute that repeats a width, dimension of the weight)."""


@dataclass(frozen=True)
class Carrier:
    """A tensor that holds the channels of the residual stream along some of its dimensions."""

    module: nn.Module
    name: str
    dims: tuple[int, ...]

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.name)


def stream_sites(layers: Sequence[Layer]) -> list[PruningSite]:
    """One site with the channels of the residual stream as its units, for scoring; `narrow` removes them."""
    slices: dict[tuple[nn.Module, Side], None] = {}
    for layer in layers:
        for site in layer.attention:
            reading = [site.query] if _reads_elsewhere(site, layers) else [site.query, site.key, site.value]
            slices.update({(projection.module, "in"): None for projection in reading})
            slices[site.output, "out"] = None
        if layer.feed_forward.width:
            slices.update({(module, "in"): None for module in layer.feed_forward.inputs})
            slices[layer.feed_forward.output, "out"] = None
    require_plain(STREAM, [module for module, _ in slices])
    width = next(in_features(module) for module, side in slices if side == "in")
    channels = spread(width, 1)
    return [PruningSite(STREAM, "channel", width, tuple(Slice(module, side, channels) for module, side in slices))]


def narrow(architecture: Architecture, channels: Sequence[int]) -> None:
    """Cut channels out of the residual stream of a model, in place.

    Raises:
        UsageError: as `carriers`; the model is then untouched.
    """
    model = architecture.model
    found = carriers(architecture)
    width = stream_sites(architecture.layers)[0].units
    keep = torch.tensor(sorted(set(range(width)) - set(channels)))
    tensors = {id(c.tensor): c for c in found if isinstance(c.tensor, nn.Parameter)}.values()
    gone = sum(c.tensor.numel() - round(c.tensor.numel() * (len(keep) / width) ** len(c.dims)) for c in tensors)
    expected = model.num_parameters() - gone
    cut: dict[int, tuple[Tensor, Tensor]] = {}
    for carrier in found:
        old = carrier.tensor
        # Tied tensors are cut once and stay one; the old one is kept so that its id stays its own.
        cut.setdefault(id(old), (old, _cut(old, carrier.dims, keep)))
        setattr(carrier.module, carrier.name, cut[id(old)][1])
    for module in {id(carrier.module): carrier.module for carrier in found}.values():
        _update_widths(module)
    for module in model.modules():
        if vars(module).get("hidden_size") == width:
            module.hidden_size = len(keep)  # type: ignore[assignment]
    assert model.num_parameters() == expected


def _cut(old: Tensor, dims: Sequence[int], keep: Tensor) -> Tensor:
    new = old.detach()
    for dim in dims:
        new = new.index_select(dim, keep.to(old.device))
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _update_widths(module: nn.Module) -> None:
    for kind, widths in _WIDTHS.items():
        if isinstance(module, kind):
            for name, dim in widths:
                setattr(module, name, module.weight.shape[dim])  # type: ignore[union-attr,index]
    if hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(module.weight.shape)  # type: ignore[assignment,union-attr]


def carriers(architecture: Architecture) -> list[Carrier]:
    """Every tensor that holds channels of the residual stream.

    Raises:
        UsageError: a tensor of which it cannot be told (an attention operator with weights, positions computed for a
            fixed width), named.
    """
    model = architecture.model
    width = stream_sites(architecture.layers)[0].units
    plain, wide = skeleton(model), _twice_as_wide(model)
    inner = set(_inner(architecture))
    found = []
    for path, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            shapes = [_shape(built, path, name) for built in (plain, wide)]
            if shapes[0] is None or shapes[1] is None:
                raise _unknown(model, f"{path}.{name}", "its architecture builds no such tensor")
            grown = [dim for dim, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b]
            dims = tuple(dim for dim in grown if (module, _side(module, tensor, dim)) not in inner)
            if name in module._non_persistent_buffers_set:
                if any(tensor.shape[dim] == width for dim in dims):
                    raise _unknown(model, f"{path}.{name}", "it is computed for the whole width")
            elif any(tensor.shape[dim] != width for dim in dims):
                raise _unknown(model, f"{path}.{name}", f"its shape is {list(tensor.shape)}")
            elif dims:
                found.append(Carrier(module, name, dims))
    return found


def _unknown(model: PreTrainedModel, tensor: str, reason: str) -> UsageError:
    return UsageError(
        f"the hidden width of {type(model).__name__} cannot be pruned: of {tensor} it is not known which part belongs "
        f"to which channel ({reason}). Prune heads, ffn or layers instead, or the hidden width before other passes"
    )


def _twice_as_wide(model: PreTrainedModel) -> nn.Module:
    config: Any = copy.deepcopy(model.config)
    config.hidden_size = 2 * config.hidden_size
    config._attn_implementation = "eager"
    with torch.device("meta"):
        return type(model)(config)


def _shape(built: nn.Module, path: str, name: str) -> torch.Size | None:
    try:
        tensor = getattr(built.get_submodule(path), name, None)
    except AttributeError:
        return None
    return tensor.shape if isinstance(tensor, Tensor) else None


def _side(module: nn.Module, tensor: Tensor, dim: int) -> Side:
    """Which side of a linear module a dimension of its weight or bias is; "out" for other modules."""
    if tensor.dim() == 2 and isinstance(module, nn.Linear | Conv1D):
        return "in" if (dim == 1) != isinstance(module, Conv1D) else "out"
    return "out"


def _inner(architecture: Architecture) -> Iterator[tuple[nn.Module, Side]]:
    """The sides of linear modules that face the inside of attention and FFN, or another model."""
    layers = architecture.layers
    for layer in layers:
        for site in layer.attention:
            for projection in (site.query, site.key, site.value):
                yield projection.module, "out"
            yield site.output, "in"
            if _reads_elsewhere(site, layers):
                yield site.key.module, "in"
                yield site.value.module, "in"
        for module in layer.feed_forward.inputs:
            if not isinstance(module, Zero):
                yield module, "out"
        yield layer.feed_forward.output, "in"


def _reads_elsewhere(site: AttentionSite, layers: Sequence[Layer]) -> bool:
    """Whether keys and values come from an encoder that is not part of the model."""
    return site.is_cross and all(layer.stack != "encoder" for layer in layers)
