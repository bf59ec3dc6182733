"""The vocabulary in which an adapter describes a model: projections, attention sites, FFN sites, layers, stacks.

The records are views on the live modules: widths and head counts are read from the weights when asked for, so
a record stays true after the modules it points at have been narrowed. They are cheap to build; ask the adapter
for fresh ones after layers were removed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effitrans.architectures.absent import AbsentAttention, Same, Zero
from effitrans.errors import UsageError
from effitrans.layers import check_numbers


def out_features(module: nn.Module) -> int:
    """Output width of a linear module, read from its weight: `nn.Linear` stores [out, in], GPT-2's Conv1D [in, out].
    Modules that hold integers, in whatever layout, say it themselves. 0 where the module was removed.
    """
    return _features(module, "out_features", 1 if isinstance(module, Conv1D) else 0)


def in_features(module: nn.Module) -> int:
    """Input width of a linear module, likewise."""
    return _features(module, "in_features", 0 if isinstance(module, Conv1D) else 1)


def _features(module: nn.Module, name: str, dimension: int) -> int:
    if isinstance(module, Zero):
        return 0
    if not isinstance(module, nn.Linear | Conv1D) and isinstance(getattr(module, name, None), int):
        return getattr(module, name)
    return module.weight.shape[dimension]  # type: ignore[union-attr,index]


def base_of(model: PreTrainedModel) -> tuple[str, Any]:
    """(path prefix, module) of the model without its task head: `("bert.", model.bert)`, or `("", model)`."""
    base = model.base_model
    return ("" if base is model else f"{model.base_model_prefix}."), base


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `model` holds `old`; nothing where it does not hold it any more."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


def present(*sites: "AttentionSite | None") -> "tuple[AttentionSite, ...]":
    """The attention sites that are there: an adapter gives None for a block that was removed."""
    return tuple(site for site in sites if site is not None)


@dataclass(frozen=True)
class Projection:
    """One of `parts` equal parts of a linear module's output features: the query third of GPT-2's fused
    projection is `Projection(c_attn, 0, 3)`; a projection with a module of its own is `Projection(q_proj)`.
    """

    module: nn.Module
    part: int = 0
    parts: int = 1

    @property
    def width(self) -> int:
        """Number of output features that belong to this projection."""
        return out_features(self.module) // self.parts

    @property
    def start(self) -> int:
        """Index of the first of them among the module's output features."""
        return self.part * self.width


@dataclass(frozen=True)
class HeadTensor:
    """A parameter or buffer with one slice a query head along `dim`: ALiBi slopes, relative position tables."""

    module: nn.Module
    name: str
    dim: int


@dataclass(frozen=True)
class AttentionSite:
    """One attention block: its projections, and the attributes that its forward pass reads."""

    path: str
    """Path of `module` in the model."""
    module: nn.Module
    """The module that the attention interface of transformers receives."""
    query: Projection
    key: Projection
    value: Projection
    output: nn.Module
    """The linear module that maps the concatenated heads back to the hidden size."""
    head_dim: int
    """Features of one head; does not change when heads are removed."""
    attributes: Mapping[str, str]
    """Attribute of `module` -> the quantity it holds: heads, key_value_heads, queries_per_group, query_width."""
    head_tensors: tuple[HeadTensor, ...] = ()
    is_cross: bool = False
    """Whether keys and values come from an encoder."""
    shares_heads: str | None = None
    """Sites with the same name here must lose the same heads together (T5 adds one position bias in all layers)."""
    norm: nn.Module | None = None
    """The norm in front of this block that nothing else reads (pre-norm families); it goes with the block."""
    needed: str | None = None
    """Why the block cannot be removed as a whole; None where it can."""
    returns_bias: bool = False
    """Whether the module hands the position bias on as its second value."""

    @property
    def num_heads(self) -> int:
        """Number of query heads."""
        return self.query.width // self.head_dim

    @property
    def num_key_value_heads(self) -> int:
        """Number of key/value heads; under grouped-query attention fewer than `num_heads`."""
        return self.key.width // self.head_dim

    def update_attributes(self) -> None:
        """Set the attributes that the forward pass reads to what the weights now hold."""
        quantities = {
            "heads": self.num_heads,
            "key_value_heads": self.num_key_value_heads,
            "queries_per_group": self.num_heads // self.num_key_value_heads,
            "query_width": self.query.width,
        }
        for name, quantity in self.attributes.items():
            setattr(self.module, name, quantities[quantity])

    def remove(self, model: nn.Module) -> None:
        """Take the whole block out of the model, in place: its output is zero from then on, at no cost."""
        layer_idx = None if self.is_cross else getattr(self.module, "layer_idx", None)
        absent = AbsentAttention(layer_idx, self.returns_bias)
        replace_module(model, self.module, absent.train(self.module.training))
        replace_module(model, self.output, Zero())
        if self.norm is not None:
            replace_module(model, self.norm, Same())


@dataclass(frozen=True)
class FeedForwardSite:
    """One feed-forward network. A gated one has two input modules (up and gate) whose neurons go together."""

    path: str
    module: nn.Module
    inputs: tuple[nn.Module, ...]
    output: nn.Module
    attributes: tuple[str, ...] = ()
    """Attributes of `module` that hold the width."""
    norm: nn.Module | None = None
    """The norm in front of this network that nothing else reads (pre-norm families); it goes with the network."""

    @property
    def width(self) -> int:
        """Number of neurons; 0 where the network was removed."""
        return in_features(self.output)

    def remove(self, model: nn.Module) -> None:
        """Take the whole network out of the model, in place: its output is zero from then on, at no cost."""
        for module in (*self.inputs, self.output):
            replace_module(model, module, Zero())
        if self.norm is not None:
            replace_module(model, self.norm, Same())

    def update_attributes(self) -> None:
        """Set the attributes that hold the width to what the weights now hold."""
        for name in self.attributes:
            setattr(self.module, name, self.width)


@dataclass(frozen=True)
class Layer:
    """One Transformer layer."""

    path: str
    stack: str
    """Name of the stack it is in: "encoder" or "decoder"."""
    index: int
    """Position in its stack."""
    module: nn.Module
    attention: tuple[AttentionSite, ...]
    """Self-attention, then cross-attention where there is one; a block that was removed is not among them."""
    feed_forward: FeedForwardSite

    def sizes(self, quantity: str) -> set[int]:
        """The values of one of the quantities of `Stack.sizes`; none where the sublayer was removed."""
        if quantity == "ffn":
            return {self.feed_forward.width} - {0}
        names = {"heads": "num_heads", "key_value_heads": "num_key_value_heads", "head_dim": "head_dim"}
        return {getattr(site, names[quantity]) for site in self.attention}


SIZES: Mapping[str, tuple[str, ...]] = {
    "heads": ("num_attention_heads",),
    "head_dim": ("head_dim",),
    "ffn": ("intermediate_size",),
}
"""Quantities of a layer, and how most configs name them; with grouped queries "key_value_heads" too."""


@dataclass(frozen=True)
class Stack:
    """A list of layers that run one after the other."""

    name: str
    path: str
    modules: nn.ModuleList
    describe: Callable[[str, nn.Module], tuple[tuple[AttentionSite, ...], FeedForwardSite]]
    """(path, layer module) -> the attention sites and the FFN of that layer."""
    counters: tuple[tuple[Any, str], ...]
    """(object, attribute) pairs, in configs and modules, that hold the number of layers."""
    sizes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SIZES)
    """Quantity -> the attributes of the model's config that hold it for every layer of the stack."""
    per_layer: tuple[tuple[Any, str], ...] = ()
    """(config, attribute) pairs that hold one entry a layer; an attribute that is absent or None is left alone."""
    hand_over: Callable[[nn.Module, nn.Module], None] | None = None
    """(old first layer, new first layer) -> moves what only the first layer holds."""

    def keep(self, indices: Sequence[int]) -> None:
        """Shorten the stack to these layers, in the order of the model."""
        kept = [self.modules[i] for i in indices]
        if self.hand_over is not None and kept[0] is not self.modules[0]:
            self.hand_over(self.modules[0], kept[0])
        for owner, name in self.per_layer:
            entries = getattr(owner, name, None)
            if entries is not None:
                setattr(owner, name, [entries[i] for i in indices])
        for owner, name in self.counters:
            setattr(owner, name, len(kept))
        del self.modules[:]
        self.modules.extend(kept)
        for position, layer in enumerate(kept):
            for module in layer.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = position  # type: ignore[assignment]


@dataclass(frozen=True)
class Architecture:
    """What a pass needs to know about a model. Built by `effitrans.architectures.adapter`.

    >>> from transformers import BertConfig, BertModel
    >>> from effitrans.architectures import adapter
    >>> config = BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=3)
    >>> model = BertModel(config)
    >>> architecture = adapter(model)
    >>> [layer.attention[0].num_heads for layer in architecture.layers]
    [4, 4, 4]
    >>> architecture.drop_layers(keep=[0, 2])
    >>> model.config.num_hidden_layers
    2
    """

    model: PreTrainedModel
    stacks: tuple[Stack, ...]
    """One, or the encoder and then the decoder."""

    @property
    def layers(self) -> list[Layer]:
        """The layers of all stacks in the order of the model."""
        found = []
        for stack in self.stacks:
            for index, module in enumerate(stack.modules):
                path = f"{stack.path}.{index}"
                attention, feed_forward = stack.describe(path, module)
                found.append(Layer(path, stack.name, index, module, attention, feed_forward))
        return found

    @property
    def attention_modules(self) -> list[tuple[str, nn.Module]]:
        """(path, module) of every attention block, self and cross, in the order of the model."""
        return [(site.path, site.module) for layer in self.layers for site in layer.attention]

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, as the layers read it."""
        layers = self.layers
        readers = [site.query.module for layer in layers for site in layer.attention]
        readers += [module for layer in layers if layer.feed_forward.width for module in layer.feed_forward.inputs]
        return in_features(readers[0])

    def agreed_sizes(self) -> dict[str, dict[str, int]]:
        """What all layers agree on: "ffn", "attention" and "hidden" -> attribute of the config -> value.

        A `head_dim` that the config does not have is left out where the heads fill the hidden size.
        """
        stacks = {stack.name: stack for stack in self.stacks}
        hidden = self.hidden_size
        found: dict[str, dict[str, set[int]]] = {"ffn": {}, "attention": {}, "hidden": {"hidden_size": {hidden}}}
        for layer in self.layers:
            for quantity, names in stacks[layer.stack].sizes.items():
                for name in names:
                    of_kind = found["ffn" if quantity == "ffn" else "attention"]
                    of_kind.setdefault(name, set()).update(layer.sizes(quantity))
        filled = all(site.query.width == hidden for layer in self.layers for site in layer.attention)
        if filled and getattr(self.model.config, "head_dim", None) is None:
            found["attention"].pop("head_dim", None)
        return {
            kind: {name: min(values) for name, values in named.items() if len(values) == 1}
            for kind, named in found.items()
        }

    def drop_layers(self, keep: Sequence[int] | Mapping[str, Sequence[int]]) -> None:
        """Remove all layers but those named, in place: the weights, the counts in the config, the cache indices.

        Args:
            keep: indices of the layers to keep, counted from 0 in the model as it is now, in any order. A plain
                sequence holds for every stack; a mapping names the stack ("encoder", "decoder") and leaves the
                others as they are.

        Raises:
            UsageError: no layer would be left, an index is out of range or doubled, or a stack is not known.
        """
        names = [stack.name for stack in self.stacks]
        wanted = dict(keep) if isinstance(keep, Mapping) else dict.fromkeys(names, keep)
        self.check_layers(wanted)
        for stack in self.stacks:
            if stack.name in wanted:
                stack.keep(sorted(wanted[stack.name]))

    def check_layers(self, keep: Mapping[str, Sequence[int]]) -> None:
        """Raise the errors of `drop_layers` without changing anything."""
        stacks = {stack.name: stack for stack in self.stacks}
        for name, indices in keep.items():
            if name not in stacks:
                raise UsageError(f"no stack named {name!r} in this model: it has {', '.join(stacks)}")
            _check_indices(stacks[name], indices)


def _check_indices(stack: Stack, keep: Sequence[int]) -> None:
    total = len(stack.modules)
    if not keep:
        raise UsageError(f"every layer of the {stack.name} would be removed: keep at least one of its {total}")
    check_numbers(keep, total, f"the {stack.name}")
    if len(set(keep)) != len(keep):
        raise UsageError(f"layers to keep name a layer of the {stack.name} twice: {list(keep)}")


def evenly_chosen(total: int, keep: int) -> list[int]:
    """Indices of `keep` of `total` layers, evenly spaced from the first to the last.

    >>> evenly_chosen(12, 6)
    [0, 2, 4, 7, 9, 11]
    >>> evenly_chosen(6, 3)
    [0, 2, 5]

    Raises:
        UsageError: `keep` is not between 1 and `total`.
    """
    if not 1 <= keep <= total:
        raise UsageError(f"cannot keep {keep} of {total} layers: give a number from 1 to {total}")
    if keep == 1:
        return [0]
    return [round(position * (total - 1) / (keep - 1)) for position in range(keep)]
