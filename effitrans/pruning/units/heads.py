"""Attention heads; under grouped queries a key/value head with its queries, or a query head."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from effitrans.architectures import Architecture, AttentionSite, HeadTensor, Layer
from effitrans.config import Config, Count
from effitrans.errors import UsageError
from effitrans.pruning.sites import PruningSite, Slice, require_plain, spread
from effitrans.pruning.units.base import Ratio, RatioUnit


class HeadSettings(Config):
    """What `Pruning` says of heads."""

    heads: Ratio = 0.0
    """Fraction of the attention heads to remove, 0 to 1; self- and cross-attention alike."""
    min_heads: Count | None = None
    """Heads that every layer keeps. None: 1 under scope "global"; under "layer" a ratio that leaves none is refused."""
    grouped_queries: Literal["groups", "queries"] = "groups"
    """Under grouped-query attention a head is: "groups", a key/value head with its queries; "queries", a query head."""

    def idle(self) -> dict[str, str]:
        return {} if self.heads else dict.fromkeys(("min_heads", "grouped_queries"), "without heads")


class Heads(RatioUnit):
    """Attention heads."""

    setting = "heads"
    help = "Fraction of the attention heads removed."
    settings = HeadSettings
    reads = ("scope",)

    def sites(self, layers: Sequence[Layer], config: Any) -> list[PruningSite]:
        return head_sites(layers, config.grouped_queries)

    def limits(self, config: Any) -> dict[str, Any]:
        return {**super().limits(config), "minimum": config.min_heads}

    def why_nothing(self, sites: Sequence[PruningSite], config: Any) -> str:
        most = max(site.units // site.blocks for site in sites)
        if most == 1:
            return (
                f"heads={config.heads:g} removes nothing: every layer has a single key/value head left to all its "
                "queries. To remove query heads, set grouped_queries='queries'"
            )
        return (
            f"heads={config.heads:g} removes nothing: of at most {most} heads in a layer less than half of one would "
            f"go, or min_heads={config.min_heads} protects all. Give a ratio of at least {1 / most:.3g}"
        )

    def sizes(self, architecture: Architecture) -> set[int]:
        return {site.num_key_value_heads for layer in architecture.layers for site in layer.attention}


def head_sites(layers: Sequence[Layer], grouped_queries: Literal["groups", "queries"] = "groups") -> list[PruningSite]:
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


def _head_site(name: str, attentions: list[AttentionSite], grouped_queries: str) -> PruningSite:
    first = attentions[0]
    by_query = grouped_queries == "queries" and first.num_heads != first.num_key_value_heads
    units = first.num_heads if by_query else first.num_key_value_heads
    queries = first.num_heads // units
    slices: list[Slice] = []
    tables: list[tuple[HeadTensor, int]] = []
    for attention in attentions:
        require_plain(attention.path, [p.module for p in (attention.query, attention.key, attention.value)])
        require_plain(attention.path, [attention.output])
        _require_operator_follows(attention)
        width = queries * attention.head_dim
        slices.append(Slice(attention.query.module, "out", spread(units, width, attention.query.start)))
        if not by_query:
            for projection in (attention.key, attention.value):
                slices.append(Slice(projection.module, "out", spread(units, attention.head_dim, projection.start)))
        slices.append(Slice(attention.output, "in", spread(units, width)))
        tables += [(table, queries) for table in attention.head_tensors]

    operators = [getattr(attention.module, "attention_operator", None) for attention in attentions]

    def update(kept: Sequence[int]) -> None:
        query_heads = spread(units, queries)[torch.tensor(kept, dtype=torch.long)].flatten().tolist()
        key_value_heads = list(range(first.num_key_value_heads)) if by_query else list(kept)
        for attention, operator in zip(attentions, operators, strict=True):
            attention.update_attributes()
            if operator is not None and hasattr(operator, "keep_heads"):
                operator.keep_heads(query_heads, key_value_heads)

    return PruningSite(
        name=name,
        kind="head",
        units=units,
        slices=tuple(slices),
        blocks=first.num_key_value_heads if by_query else 1,
        tables=tuple(tables),
        after=update,
        operators=tuple(operator for operator in operators if operator is not None),
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
