"""The five ways in which the base Transformer knows positions.

- sinusoidal: Vaswani et al. 2017, section 3.5; a fixed table added to the embeddings.
- learned: a trained table added to the embeddings.
- rotary: Su et al. 2021 (RoFormer), equation 34; queries and keys are turned by angles that grow with the position.
  Features i and i + D/2 form a pair, as in Llama.
- alibi: Press et al. 2022; minus slope times distance, added to the attention scores. An encoder uses it both ways.
- relative: Raffel et al. 2020 (T5), section 2.1; a trained bias a head for each bucket of distances.

The first three take positions that count real tokens only, so padding on either side changes nothing. The biases
depend on the distance between two tokens alone, which padding on either side does not change either.

Shapes: B batch, L query length, S key length, H query heads, D head dimension, C hidden size.
"""

import math

import torch
from torch import Tensor, nn

from effitrans.errors import UsageError


def position_ids_from(attention_mask: Tensor | None, length: int, past: int | Tensor, device: torch.device) -> Tensor:
    """Positions of the last `length` tokens, counting real tokens only: [B, L], or [1, L] if there is no mask.

    Args:
        attention_mask: [B, past + L], 1 for real tokens; masks of other dimensions say nothing about padding.
        past: number of tokens before these.
    """
    if attention_mask is not None and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return (torch.arange(length, device=device) + past).unsqueeze(0)


def sinusoidal_table(positions: int, hidden_size: int, std: float) -> Tensor:
    """[positions, C]: sines in the even columns, cosines in the odd ones, wavelengths from 2 pi to 20000 pi; made as
    small as the embeddings of tokens are at the start, whose standard deviation is `std`."""
    column_C = torch.arange(hidden_size)
    frequency_C = 10000.0 ** (-(column_C - column_C % 2) / hidden_size)
    angle = torch.arange(positions)[:, None] * frequency_C
    return std * math.sqrt(2) * torch.where(column_C % 2 == 0, angle.sin(), angle.cos())


class _PositionTable(nn.Module):
    """A table of one vector a position."""

    max_positions: int

    def check_length(self, length: int | Tensor) -> None:
        """Refuse sequences that run past the end of the table."""
        if isinstance(length, int) and length > self.max_positions:
            raise UsageError(
                f"a sequence of {length} tokens, but this model has {self.max_positions} positions: truncate it, "
                "or build the model with a larger max_position_embeddings or with rotary, alibi or relative positions"
            )


class SinusoidalPositions(_PositionTable):
    """position ids [B, L] -> [B, L, C]."""

    table: Tensor

    def __init__(self, max_positions: int, hidden_size: int, std: float) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.register_buffer("table", sinusoidal_table(max_positions, hidden_size, std), persistent=False)

    def forward(self, position_ids: Tensor) -> Tensor:
        return self.table[position_ids]


class LearnedPositions(_PositionTable):
    """position ids [B, L] -> [B, L, C]."""

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.weight = nn.Parameter(torch.empty(max_positions, hidden_size))

    def forward(self, position_ids: Tensor) -> Tensor:
        return nn.functional.embedding(position_ids, self.weight)


def rotary_angles(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles, [B, 1, L, D/2] each, in float32.

    They are computed anew in each forward pass: there is no table that a cast to half precision could spoil.
    """
    exponent = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angle = position_ids[:, None, :, None].float() * theta**-exponent
    return angle.cos(), angle.sin()


def rotate(x_BHLD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of features by its angle."""
    cos, sin = cos.to(x_BHLD.dtype), sin.to(x_BHLD.dtype)
    first, second = x_BHLD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def alibi_slopes(num_heads: int) -> Tensor:
    """[H] slopes: 2^(-8/n), 2^(-16/n), ... for n = H a power of two; else those of the power of two below H, then
    every other one of the power of two above."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes)


def relative_buckets(distance: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket of each distance (key position minus query position): one each for the near half, logarithmically
    wider ones up to `max_distance`. Bidirectional: half of the buckets for keys before the query, half for after."""
    if bidirectional:
        num_buckets //= 2
        offset, steps = (distance > 0).long() * num_buckets, distance.abs()
    else:
        offset, steps = torch.zeros_like(distance), (-distance).clamp(min=0)
    exact = num_buckets // 2
    ratio = torch.log(steps.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return offset + torch.where(steps < exact, steps, far)


def _distances(query_length: int, key_length: int, past: int | Tensor, device: torch.device) -> Tensor:
    """[L + S - 1] all distances (key minus query) that occur, from the most negative up."""
    return torch.arange(query_length + key_length - 1, device=device) - (query_length - 1) - past


def _by_query_and_key(bias_HT: Tensor, key_length: int) -> Tensor:
    """Lay biases by distance out by query and key: [H, L + S - 1] -> [1, H, L, S]. The first query has the largest
    distances, so query i reads the window that starts at L - 1 - i."""
    return bias_HT.unfold(1, key_length, 1).flip(1).unsqueeze(0)


class AlibiBias(nn.Module):
    """The ALiBi bias of one attention module. `slopes` [H] is saved, so that heads can be removed from one layer."""

    slopes: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", alibi_slopes(num_heads))

    def forward(self, query_length: int, key_length: int, past: int | Tensor) -> Tensor:
        """[1, H, L, S], where the queries come after `past` tokens and the keys start at token 0."""
        distance_T = _distances(query_length, key_length, past, self.slopes.device)
        return _by_query_and_key(-self.slopes[:, None] * distance_T.abs(), key_length)


class RelativeBias(nn.Module):
    """The bucketed relative bias of one attention module. `weight` is [buckets, H]; no layer shares it, so heads
    can be removed from one layer."""

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int, bidirectional: bool) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))

    def forward(self, query_length: int, key_length: int, past: int | Tensor) -> Tensor:
        """[1, H, L, S], where the queries come after `past` tokens and the keys start at token 0."""
        distance_T = _distances(query_length, key_length, past, self.weight.device)
        bucket_T = relative_buckets(distance_T, self.num_buckets, self.max_distance, self.bidirectional)
        return _by_query_and_key(self.weight[bucket_T].t(), key_length)
