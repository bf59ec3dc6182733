"""Attention of other packages, as sides of `benchmarks/attention.py`.

Equal work: every side gets the same heads [B, H, L, D] and returns them mixed. Layers that project hidden states
themselves are given the heads in place of their projections, and no output projection, so that no side pays for one.
The sizes are those of our operator of the same kind: keys a window holds, landmarks, rank, random features, blocks a
block sees. What remains different: Longformer and BigBird take masks and LinearAttentionTransformer and BigBird have
their own patterns or kernels; no side is given padding, and dropout is off everywhere.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WINDOW, LANDMARKS, RANK, FEATURES, BLOCK, RANDOM_BLOCKS = 129, 64, 128, 256, 64, 3
"""The keys on each side, one's own counted (Longformer: 256 neighbours), and what our operators have by default."""

Side = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """What a side is built for."""

    length: int
    heads: int
    dim: int
    causal: bool


@dataclass(frozen=True)
class Peer:
    """One of the packages that are compared."""

    package: str
    """Name of the module that must be installed."""
    ours: str
    """Our operator that does the same work, by its name in the table."""
    build: Callable[[Shape], Side]
    expected: Callable[[Side, Tensor, Tensor, Tensor, bool], Tensor]
    """What it says it computes, written densely."""
    error: float = 1e-4
    """Largest relative error against that."""
    causal: bool = False
    """Whether it has a causal form."""
    multiple: int = 1
    """Lengths must be a multiple of this."""

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None

    def misfit(self, shape: Shape) -> str | None:
        """Why it cannot run, None if it can."""
        if self.missing:
            return f"{self.package} is not installed"
        if shape.causal and not self.causal:
            return "has no causal form"
        if shape.length % self.multiple:
            return f"takes lengths in multiples of {self.multiple}"
        return None


class Given(nn.Module):
    """Stands in for a projection: returns what it was given last."""

    value: Any = None

    def forward(self, hidden: Tensor) -> Any:
        return self.value


class Parts(tuple):
    """What a joint projection to queries, keys and values returns, cut already."""

    def chunk(self, number: int, dim: int = -1) -> "Parts":
        return self


def merged(heads_BHLD: Tensor) -> Tensor:
    """[B, L, H D], a view of heads as a projection left them."""
    return heads_BHLD.transpose(1, 2).flatten(2)


def split(out_BLE: Tensor, heads: int) -> Tensor:
    return out_BLE.unflatten(-1, (heads, -1)).transpose(1, 2)


def softmax(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return (scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)).softmax(-1) @ value


def window(length: int, causal: bool) -> Tensor:
    ahead = torch.arange(length)[:, None] - torch.arange(length)
    return (ahead.abs() < WINDOW) & ((ahead >= 0) | (not causal))


def windowed(side: Side, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    return softmax(query, key, value, window(query.shape[2], causal))


def local_attention(shape: Shape) -> Side:
    from local_attention import LocalAttention  # type: ignore[import-not-found]

    return LocalAttention(
        window_size=WINDOW - 1, causal=shape.causal, exact_windowsize=True, use_rotary_pos_emb=False
    ).eval()


def longformer(shape: Shape) -> Side:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=shape.heads * shape.dim,
        num_attention_heads=shape.heads,
        attention_window=[2 * (WINDOW - 1)],
        attention_probs_dropout_prob=0.0,
    )
    layer: Any = LongformerSelfAttention(config, 0).eval()
    layer.query, layer.key, layer.value = Given(), Given(), Given()

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        hidden = merged(query)
        # it scales the queries in place
        layer.query.value, layer.key.value, layer.value.value = (
            hidden.transpose(0, 1).clone(),
            merged(key).transpose(0, 1),
            merged(value).transpose(0, 1),
        )
        mask = hidden.new_zeros(hidden.shape[:2])
        return split(layer(hidden, mask, mask != 0, mask != 0, False)[0], shape.heads)

    return run


def big_bird(shape: Shape) -> Side:
    from transformers import BigBirdConfig, BigBirdModel
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    config = BigBirdConfig(
        hidden_size=shape.heads * shape.dim,
        num_attention_heads=shape.heads,
        block_size=BLOCK,
        num_random_blocks=RANDOM_BLOCKS,
        max_position_embeddings=shape.length,
    )
    layer: Any = BigBirdBlockSparseAttention(config, seed=0).eval()
    layer.query, layer.key, layer.value = Given(), Given(), Given()
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, shape.length), BLOCK)

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        layer.query.value, layer.key.value, layer.value.value = merged(query), merged(key), merged(value)
        masks = (mask.expand(query.shape[0], *mask.shape[1:]) for mask in (band, rows, columns, blocked, blocked))
        return split(layer(merged(query), *masks)[0], shape.heads)

    return run


def blocks_seen(side: Side, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Dense for the first and last block; others see these, their neighbours, and in evaluation mode the first block
    once more for each random one.
    """
    count = query.shape[2] // BLOCK
    out = softmax(query, key, value)
    for row in range(1, count - 1):
        blocks = [*sorted({0, row - 1, row, row + 1, count - 1}), *[0] * RANDOM_BLOCKS]
        seen = torch.cat([torch.arange(BLOCK * block, BLOCK * (block + 1)) for block in blocks])
        rows = slice(BLOCK * row, BLOCK * (row + 1))
        out[:, :, rows] = softmax(query[:, :, rows], key[:, :, seen], value[:, :, seen])
    return out


def performer(shape: Shape) -> Side:
    from performer_pytorch import FastAttention  # type: ignore[import-not-found]

    torch.manual_seed(0)
    return FastAttention(dim_heads=shape.dim, nb_features=FEATURES, causal=shape.causal).eval()


def random_features(side: Any, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """FAVOR+ with its stabilisers: 1e-4 beside features over their largest, and 1e-6 in the causal sums of keys."""

    def features(heads: Tensor, dims: tuple[int, ...]) -> Tensor:
        heads = heads * heads.shape[-1] ** -0.25
        products = heads @ side.projection_matrix.T
        peak = products.amax(dims, keepdim=True)
        return FEATURES**-0.5 * (torch.exp(products - heads.square().sum(-1, keepdim=True) / 2 - peak) + 1e-4)

    query, key = features(query, (-1,)), features(key, (-1, -2))
    weights = query @ key.transpose(-1, -2)
    total = weights.sum(-1, keepdim=True)
    if causal:
        weights = weights.tril()
        total = weights.sum(-1, keepdim=True) + 1e-6 * query.sum(-1, keepdim=True)
    return weights / total @ value


def linformer(shape: Shape) -> Side:
    from linformer import LinformerSelfAttention  # type: ignore[import-not-found]

    torch.manual_seed(0)
    width = shape.heads * shape.dim
    layer: Any = LinformerSelfAttention(width, shape.length, k=RANK, heads=shape.heads).eval()
    layer.to_q, layer.to_k, layer.to_v, layer.to_out = Given(), Given(), Given(), nn.Identity()

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        layer.to_q.value, layer.to_k.value, layer.to_v.value = merged(query), merged(key), merged(value)
        return split(layer(merged(query)), shape.heads)

    run.layer = layer  # type: ignore[attr-defined]
    return run


def projected(side: Any, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    layer = side.layer
    return softmax(query, layer.proj_k.T @ key, layer.proj_v.T @ value)


def nystrom(shape: Shape) -> Side:
    from nystrom_attention import NystromAttention  # type: ignore[import-not-found]

    layer: Any = NystromAttention(
        shape.heads * shape.dim, shape.dim, shape.heads, num_landmarks=LANDMARKS, residual=False
    ).eval()
    layer.to_qkv, layer.to_out = Given(), nn.Identity()

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        layer.to_qkv.value = Parts((merged(query), merged(key), merged(value)))
        return split(layer(merged(query)), shape.heads)

    return run


def landmarks(side: Side, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """The three factors of the paper, with the pseudo-inverse iterated from the largest norms of the batch."""
    segments = [heads.unflatten(2, (LANDMARKS, -1)).mean(3) for heads in (query, key)]
    scale = query.shape[-1] ** -0.5
    first = (query @ segments[1].transpose(-1, -2) * scale).softmax(-1)
    middle = (segments[0] @ segments[1].transpose(-1, -2) * scale).softmax(-1)
    inverse = middle.transpose(-1, -2) / (middle.sum(-1).max() * middle.sum(-2).max())
    identity = torch.eye(LANDMARKS)
    for _ in range(6):
        product = middle @ inverse
        inverse = inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product))) / 4
    return first @ inverse @ softmax(segments[0], key, value)


def linear_transformer(shape: Shape) -> Side:
    from linear_attention_transformer.linear_attention_transformer import (  # type: ignore[import-not-found]
        causal_linear_attn,
        linear_attn,
    )

    return causal_linear_attn if shape.causal else linear_attn


def efficient(side: Side, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Softmax of queries over features and of keys over positions; the causal form sees earlier buckets as a whole."""
    length, scale = query.shape[2], query.shape[-1] ** -0.5
    if not causal:
        return query.softmax(-1) @ key.softmax(-2).transpose(-1, -2) @ value * scale
    bucket = torch.arange(length) // 64
    weights = (query.softmax(-1) @ key.exp().transpose(-1, -2)).masked_fill(bucket[:, None] <= bucket, 0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-9) @ value


PEERS: dict[str, Peer] = {
    "local-attention": Peer("local_attention", "local-129", local_attention, windowed, causal=True, multiple=128),
    "longformer": Peer("transformers", "local-129", longformer, windowed, multiple=256),
    "bigbird": Peer("transformers", "block_sparse", big_bird, blocks_seen, multiple=BLOCK),
    "performer-pytorch": Peer("performer_pytorch", "performer", performer, random_features, causal=True),
    "linformer-pytorch": Peer("linformer", "linformer", linformer, projected),
    "nystrom-attention": Peer("nystrom_attention", "nystrom", nystrom, landmarks, multiple=LANDMARKS),
    "linear-attention-transformer": Peer(
        "linear_attention_transformer", "linear", linear_transformer, efficient, causal=True, multiple=64
    ),
}
"""Name in the table -> how it is made, and what it is compared with."""
