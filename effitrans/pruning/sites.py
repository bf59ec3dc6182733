"""Prunable units, whatever they are made of.

A `Site` is a place with a number of like units (the heads of an attention block, the neurons of an FFN, a layer
taken whole). It says which features of which modules each unit owns, and that is all an importance criterion
or a removal needs: no criterion knows what a head is, and a new kind of unit works with every criterion.

Shapes: U units of a site, K features that one unit owns in one module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.architectures import AttentionSite, FeedForwardSite, HeadTensor, Layer, in_features, out_features
from effitrans.errors import UsageError
from effitrans.pruning.slicing import Side, drop_entries, drop_features

Kind = Literal["head", "neuron", "channel", "layer", "attention", "ffn"]


@dataclass(frozen=True)
class Slice:
    """The features of one linear module that the units of a site own."""

    module: nn.Module
    side: Side
    index_UK: Tensor
    """Feature indices, int64, on the CPU."""

    def weights(self) -> Tensor:
        """The weights that each unit owns here, without bias, as a view or copy [U, K * other side]."""
        return self.pick(self.module.weight.detach())  # type: ignore[operator]

    def pick(self, tensor: Tensor) -> Tensor:
        """As `weights`, of any tensor of the weight's shape."""
        dim = int((self.side == "in") != isinstance(self.module, Conv1D))
        units = self.index_UK.shape[0]
        picked = tensor.index_select(dim, self.index_UK.flatten().to(tensor.device))
        return picked.movedim(dim, 0).reshape(units, -1)


@dataclass(frozen=True)
class Site:
    """A place with like units that can be removed one by one."""

    name: str
    """Where it is, as the user knows it: a module path."""
    kind: Kind
    units: int
    slices: tuple[Slice, ...]
    blocks: int = 1
    """Units stand in this many equal blocks, each of which must lose equally many (query heads per group)."""
    tables: tuple[tuple[HeadTensor, int], ...] = ()
    """Tensors with a number of entries (the int) a unit, which shrink along but are not scored."""
    after: Callable[[Sequence[int]], None] = lambda kept: None
    """Called after a removal with the units that stay: updates what the forward pass reads beside the weights."""
    operators: tuple[nn.Module, ...] = ()
    """Swapped attention operators of the site, which may hold parameters a head and slice them by themselves."""

    @property
    def gates(self) -> tuple[Slice, ...]:
        """The slices through which the units act on the residual stream: scaling these inputs by zero removes them."""
        return tuple(part for part in self.slices if part.side == "in")

    def remove(self, units: Sequence[int]) -> None:
        """Cut these units out of all modules of the site, in place."""
        doomed = torch.tensor(sorted(units), dtype=torch.long)
        features: dict[tuple[nn.Module, Side], set[int]] = {}
        for part in self.slices:
            features.setdefault((part.module, part.side), set()).update(part.index_UK[doomed].flatten().tolist())
        for (module, side), indices in features.items():
            drop_features(module, side, sorted(indices))
        for table, entries in self.tables:
            drop_entries(table.module, table.name, table.dim, _spread(self.units, entries)[doomed].flatten().tolist())
        self.after(sorted(set(range(self.units)) - set(units)))

    def parameters_of(self, units: Sequence[int]) -> int:
        """Number of parameters that go when these units are removed, those of `operators` not counted."""
        counts = 0
        for part in self.slices:
            other_side = in_features(part.module) if part.side == "out" else out_features(part.module)
            bias = int(part.side == "out" and part.module.bias is not None)
            counts += len(units) * part.index_UK.shape[1] * (other_side + bias)
        for table, entries in self.tables:
            tensor = getattr(table.module, table.name)
            if isinstance(tensor, nn.Parameter):
                counts += len(units) * entries * (tensor.numel() // tensor.shape[table.dim])
        return counts


def _spread(units: int, size: int, start: int = 0) -> Tensor:
    """Indices [units, size] of consecutive runs of `size` features from `start` on."""
    return start + torch.arange(units * size).reshape(units, size)


def head_sites(layers: Sequence[Layer], grouped_queries: Literal["groups", "queries"] = "groups") -> list[Site]:
    """One site for each attention block; for all blocks that share their heads, one site together.

    Args:
        layers: where to look.
        grouped_queries: what a unit is under grouped-query attention. "groups": a key/value head with all its
            query heads. "queries": a query head, equally many removed from each group; keys and values stay.
            No difference where every query head has its own key/value head.
    """
    together: dict[str, list[AttentionSite]] = {}
    for layer in layers:
        for attention in layer.attention:
            together.setdefault(attention.shares_heads or attention.path, []).append(attention)
    return [_head_site(name, attentions, grouped_queries) for name, attentions in together.items()]


def _head_site(name: str, attentions: list[AttentionSite], grouped_queries: str) -> Site:
    first = attentions[0]
    by_query = grouped_queries == "queries" and first.num_heads != first.num_key_value_heads
    units = first.num_heads if by_query else first.num_key_value_heads
    queries = first.num_heads // units
    slices: list[Slice] = []
    tables: list[tuple[HeadTensor, int]] = []
    for attention in attentions:
        _require_plain(attention.path, [p.module for p in (attention.query, attention.key, attention.value)])
        _require_plain(attention.path, [attention.output])
        _require_operator_follows(attention)
        width = queries * attention.head_dim
        slices.append(Slice(attention.query.module, "out", _spread(units, width, attention.query.start)))
        if not by_query:
            for projection in (attention.key, attention.value):
                slices.append(Slice(projection.module, "out", _spread(units, attention.head_dim, projection.start)))
        slices.append(Slice(attention.output, "in", _spread(units, width)))
        tables += [(table, queries) for table in attention.head_tensors]

    operators = [getattr(attention.module, "attention_operator", None) for attention in attentions]

    def update(kept: Sequence[int]) -> None:
        query_heads = _spread(units, queries)[torch.tensor(kept, dtype=torch.long)].flatten().tolist()
        key_value_heads = list(range(first.num_key_value_heads)) if by_query else list(kept)
        for attention, operator in zip(attentions, operators, strict=True):
            attention.update_attributes()
            if operator is not None and hasattr(operator, "keep_heads"):
                operator.keep_heads(query_heads, key_value_heads)

    return Site(
        name=name,
        kind="head",
        units=units,
        slices=tuple(slices),
        blocks=first.num_key_value_heads if by_query else 1,
        tables=tuple(tables),
        after=update,
        operators=tuple(operator for operator in operators if operator is not None),
    )


def ffn_sites(layers: Sequence[Layer]) -> list[Site]:
    """One site for each FFN that is there; its units are the neurons."""
    return [_ffn_site(layer.feed_forward) for layer in layers if layer.feed_forward.width]


def _ffn_site(feed_forward: FeedForwardSite) -> Site:
    _require_plain(feed_forward.path, [*feed_forward.inputs, feed_forward.output])
    neurons = _spread(feed_forward.width, 1)
    return Site(
        name=feed_forward.path,
        kind="neuron",
        units=feed_forward.width,
        slices=(
            *(Slice(module, "out", neurons) for module in feed_forward.inputs),
            Slice(feed_forward.output, "in", neurons),
        ),
        after=lambda kept: feed_forward.update_attributes(),
    )


def layer_sites(layers: Sequence[Layer]) -> list[Site]:
    """One site for each layer, with the layer as its only unit. For scoring: `Architecture.drop_layers` removes."""
    return [_whole(layer.path, "layer", layer.attention, layer.feed_forward) for layer in layers]


def attention_block_sites(layers: Sequence[Layer]) -> list[Site]:
    """One site for each self-attention block that is there, with the block as its only unit. For scoring."""
    return [_whole(site.path, "attention", [site]) for layer in layers if (site := self_attention(layer))]


def ffn_block_sites(layers: Sequence[Layer]) -> list[Site]:
    """One site for each FFN that is there, with the network as its only unit. For scoring."""
    return [
        _whole(layer.feed_forward.path, "ffn", (), layer.feed_forward) for layer in layers if layer.feed_forward.width
    ]


def self_attention(layer: Layer) -> AttentionSite | None:
    """The self-attention of a layer; None where it was removed."""
    return next((site for site in layer.attention if not site.is_cross), None)


def _whole(
    name: str, kind: Kind, attention: Sequence[AttentionSite], feed_forward: FeedForwardSite | None = None
) -> Site:
    outs = [projection.module for site in attention for projection in (site.query, site.key, site.value)]
    ins = [site.output for site in attention]
    if feed_forward is not None and feed_forward.width:
        outs += feed_forward.inputs
        ins.append(feed_forward.output)
    _require_plain(name, [*outs, *ins])
    slices = [Slice(module, "out", _spread(1, out_features(module))) for module in dict.fromkeys(outs)]
    slices += [Slice(module, "in", _spread(1, in_features(module))) for module in ins]
    return Site(name=name, kind=kind, units=1, slices=tuple(slices))


def _require_plain(path: str, modules: Sequence[nn.Module]) -> None:
    for module in modules:
        if type(module) not in (nn.Linear, Conv1D):
            kind = getattr(module, "kind", type(module).__name__)
            raise UsageError(
                f"{path} holds a {kind} module, from which nothing can be cut. Prune the floating-point model first, "
                "recover it by training, and quantize last."
            )


def _require_operator_follows(attention: AttentionSite) -> None:
    operator = getattr(attention.module, "attention_operator", None)
    if operator is None or hasattr(operator, "keep_heads"):
        return
    if next(operator.parameters(), None) is not None:
        raise UsageError(
            f"{attention.path} has an attention operator with weights of its own, made for its "
            f"{attention.num_heads} heads, that cannot be pruned along. Prune heads first, then swap the attention."
        )
