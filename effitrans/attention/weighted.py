"""The chunked form of linear attention where keys carry weights in the log domain, and a band may be treated apart.

Key j enters with phi(k_j) exp(c_j), query i with phi(q_i) exp(a_i). Random features of the exponential and decay need
this: their products leave the range of float32 as they stand. Everything is kept relative to a running maximum of
the c_j seen so far, as in the online softmax (Milakov and Gimelshein, 2018), so no query's numbers depend on a later
key, on padding or on another sequence. The maxima cancel in the result and get no gradient.

Positions are cut into blocks of C. A query block sees its own block, A blocks before and P blocks after key by key,
which leaves room for a window within them, and all others through sums of phi(k_j) exp(c_j) [v_j, 1]^T.
Time and memory as in `chunked`.

Shapes: B batch, G key/value heads, R query heads of a group, L queries, S keys, F features, D head dimension,
E = D + 1, X = B G, T key blocks, N query blocks, C positions of a block, W = (A + 1 + P) C.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from effitrans.attention.chunked import normalise, with_ones

EMPTY = -1e30
"""The log weight of a key that is not there; finite, so that the difference of two is a number."""

_SPAN = 64
"""Blocks whose sums are added by one triangular product; more go through a second level."""


@dataclass
class Keys:
    """Keys as linear attention sees them; a key that is not there has zero features and the log weight `EMPTY`."""

    features_BGSF: Tensor
    log_BGS: Tensor
    value_BGSE: Tensor
    """Values and a column of ones, whose weighted sum is the normaliser."""
    key_BGSD: Tensor | None = None
    """The keys themselves, where a window takes exact scores."""

    @property
    def length(self) -> int:
        """S."""
        return self.features_BGSF.shape[2]

    def part(self, start: int, stop: int | None = None) -> "Keys":
        """The keys from `start` to `stop`."""
        span = slice(start, stop)
        key = None if self.key_BGSD is None else self.key_BGSD[:, :, span]
        return Keys(self.features_BGSF[:, :, span], self.log_BGS[:, :, span], self.value_BGSE[:, :, span], key)

    def pad(self, left: int, right: int) -> "Keys":
        """With keys that are not there on both sides."""
        rows = (0, 0, left, right)
        key = None if self.key_BGSD is None else pad(self.key_BGSD, rows)
        log = pad(self.log_BGS, (left, right), value=EMPTY)
        return Keys(pad(self.features_BGSF, rows), log, pad(self.value_BGSE, rows), key)


def make_keys(
    features_BGSF: Tensor,
    log_BGS: Tensor,
    value_BGSD: Tensor,
    padding_BS: Tensor | None,
    key_BGSD: Tensor | None = None,
) -> Keys:
    """Keys with those under padding (False in `padding_BS`) taken out."""
    if padding_BS is not None:
        features_BGSF = features_BGSF.masked_fill(~padding_BS[:, None, :, None], 0)
        log_BGS = log_BGS.masked_fill(~padding_BS[:, None, :], EMPTY)
    return Keys(features_BGSF, log_BGS, with_ones(value_BGSD), key_BGSD)


@dataclass
class Memory:
    """What is left of keys whose order no longer matters: the sums are those of the weights times exp(-peak)."""

    sums_BGFE: Tensor
    peak_BG: Tensor


def summarise(keys: Keys, memory: Memory | None = None) -> Memory:
    """The memory after these keys (at least one)."""
    peak = keys.log_BGS.detach().amax(-1)
    if memory is not None:
        peak = torch.maximum(peak, memory.peak_BG)
    scaled = keys.features_BGSF * torch.exp(keys.log_BGS - peak[..., None])[..., None]
    sums = scaled.transpose(-1, -2) @ keys.value_BGSE
    if memory is not None:
        sums = sums + memory.sums_BGFE * torch.exp(memory.peak_BG - peak)[..., None, None]
    return Memory(sums, peak)


@dataclass
class Blocks:
    """What the weights of a query block's W neighbouring keys are made of. All broadcast to [X, N, R, C, W]."""

    products: Tensor
    """phi(q_i) . phi(k_j)."""
    scores: Tensor | None
    """q_i . k_j, where the keys were given."""
    query_log: Tensor | None
    """a_i, or None where it was not given: it cancels if no other weights join."""
    key_log: Tensor
    """c_j, `EMPTY` for keys that are not there."""
    ahead_CW: Tensor
    """Position of the key minus position of the query."""
    peaks: list[Tensor]
    """Of the sums over the keys further away, before and after."""


Mix = Callable[[Blocks], tuple[Tensor, list[Tensor]]]
"""Makes the weights [X, N, R, C, W] of the neighbouring keys, and the factor [X, N, R or 1, C, 1] on what is read from
each of the sums further away, all relative to one scale of the query's own."""


def causal_mix(blocks: Blocks) -> tuple[Tensor, list[Tensor]]:
    """Plain causal linear attention: every key up to the query, by its features."""
    seen = blocks.key_log.masked_fill(blocks.ahead_CW > 0, EMPTY)
    peak = row_peak(seen, *blocks.peaks)
    return blocks.products * torch.exp(seen - peak), [torch.exp(far - peak) for far in blocks.peaks]


def row_peak(logs: Tensor, *others: Tensor) -> Tensor:
    """The largest of a query's exponents [..., C, 1], without gradient; never as small as `EMPTY`."""
    peak = logs.detach().amax(-1, keepdim=True)
    for other in others:
        peak = torch.maximum(peak, other.detach())
    return peak.clamp(min=EMPTY / 2)


def attend(
    query_BGRLF: Tensor,
    keys: Keys,
    mix: Mix,
    *,
    chunk: int,
    memory: Memory | None = None,
    history: int = 0,
    before: int = 0,
    after: int | None = None,
    query_log_BGRL: Tensor | None = None,
    query_BGRLD: Tensor | None = None,
) -> Tensor:
    """The normalised output [B, G, R, L, D].

    Args:
        query_BGRLF: features of the queries.
        keys: those at the positions of the queries, and `history` keys before them.
        mix: how neighbouring keys are weighted.
        chunk: positions of a block; shorter for fewer queries.
        memory: what there is before `keys`.
        history: keys before the first query.
        before, after: keys on each side of a query that it must see key by key; None: it sees no key after it.
        query_log_BGRL: a_i; None where it cancels.
        query_BGRLD: the queries themselves, where `mix` takes scores.
    """
    batch, groups, repeats, length, _ = query_BGRLF.shape
    chunk = min(chunk, length)
    count, left, right = -(-length // chunk), -(-before // chunk), -(-(after or 0) // chunk)
    rest = count * chunk - length
    keys = keys.pad(left * chunk - history, rest + right * chunk)

    features = _blocks(keys.features_BGSF, chunk)
    logs = keys.log_BGS.flatten(0, 1).unflatten(1, (-1, chunk))
    values = _blocks(keys.value_BGSE, chunk)
    neighbours = left + 1 + right
    far = _far(features, logs, values, count, neighbours, memory, both=after is not None)

    query = _rows(query_BGRLF, count, chunk)
    products = query @ _slices(features, neighbours).transpose(1, 2)
    scores = None
    if query_BGRLD is not None and keys.key_BGSD is not None:
        near_keys = _slices(_blocks(keys.key_BGSD, chunk), neighbours)
        scores = _rows(query_BGRLD, count, chunk) @ near_keys.transpose(1, 2)
    shape = (batch * groups, count, repeats, chunk, neighbours * chunk)
    query_log = None if query_log_BGRL is None else _rows(query_log_BGRL.unsqueeze(-1), count, chunk)
    position = torch.arange(neighbours * chunk, device=query.device)
    weights, factors = mix(
        Blocks(
            products=products.view(shape),
            scores=None if scores is None else scores.view(shape),
            query_log=None if query_log is None else query_log.view(*shape[:-1], 1),
            key_log=_slices(logs.unsqueeze(-1), neighbours).view(batch * groups, count, 1, 1, -1),
            ahead_CW=position - position[left * chunk : (left + 1) * chunk, None],
            peaks=[peak[:, :, None, None, None] for _, peak in far],
        )
    )
    rows = weights.reshape(products.shape) @ _slices(values, neighbours)
    for (sums, _), factor in zip(far, factors, strict=True):
        read = query @ sums.reshape(-1, query.shape[-1], rows.shape[-1])
        rows = rows + (read.view(*shape[:-1], -1) * factor).view_as(rows)
    out = normalise(rows).view(batch, groups, count, repeats, chunk, -1).transpose(2, 3)
    return out.flatten(3, 4)[..., :length, :]


def _far(
    features_XTCF: Tensor,
    logs_XTC: Tensor,
    values_XTCE: Tensor,
    count: int,
    neighbours: int,
    memory: Memory | None,
    both: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Sums [X, N, F * E] and peaks [X, N] over the blocks before, and those after, the neighbours of a query block."""
    if count == 1:
        # nothing lies further away but the memory
        return [] if memory is None else [(memory.sums_BGFE.flatten(0, 1)[:, None], memory.peak_BG.reshape(-1, 1))]
    peak = logs_XTC.detach().amax(-1)
    scaled = features_XTCF * torch.exp(logs_XTC - peak[..., None])[..., None]
    sums = (scaled.transpose(-1, -2) @ values_XTCE).flatten(2)
    far = []
    if memory is None:
        earlier = _exclusive_sums(sums[:, :count], peak[:, :count])
    else:
        first = memory.sums_BGFE.flatten(0, 1).flatten(1)[:, None]
        with_memory = torch.cat([first, sums[:, :count]], dim=1)
        peaks = torch.cat([memory.peak_BG.reshape(-1, 1), peak[:, :count]], dim=1)
        earlier = tuple(part[:, 1:] for part in _exclusive_sums(with_memory, peaks))
    far.append(earlier)
    if both:
        last = slice(neighbours - 1, None)
        later = _exclusive_sums(sums[:, last].flip(1), peak[:, last].flip(1))
        far.append(tuple(part.flip(1) for part in later))
    return far


def _exclusive_sums(sums_XTY: Tensor, peak_XT: Tensor) -> tuple[Tensor, Tensor]:
    """For each entry the sum of those before it along T, relative to the largest of their peaks, and that peak."""
    count = sums_XTY.shape[1]
    if count > _SPAN:
        return _exclusive_sums_of_spans(sums_XTY, peak_XT)
    earlier = pad(peak_XT.cummax(1).values[:, :-1], (1, 0), value=EMPTY)
    index = torch.arange(count, device=peak_XT.device)
    exponents = peak_XT[:, None, :] - earlier[:, :, None]
    factors = torch.exp(exponents.masked_fill(index >= index[:, None], EMPTY))
    return factors @ sums_XTY, earlier


def _exclusive_sums_of_spans(sums_XTY: Tensor, peak_XT: Tensor) -> tuple[Tensor, Tensor]:
    count = sums_XTY.shape[1]
    spans = pad(sums_XTY, (0, 0, 0, -count % _SPAN)).unflatten(1, (-1, _SPAN))
    peaks = pad(peak_XT, (0, -count % _SPAN), value=EMPTY).unflatten(1, (-1, _SPAN))
    within, within_peak = _exclusive_sums(spans.flatten(0, 1), peaks.flatten(0, 1))
    top = peaks.amax(-1)
    totals = (torch.exp(peaks - top[..., None])[..., None, :] @ spans).squeeze(2)
    across, across_peak = _exclusive_sums(totals, top)
    within_peak, across_peak = within_peak.view_as(peaks), across_peak[..., None]
    peak = torch.maximum(within_peak, across_peak)
    sums = within.view_as(spans) * torch.exp(within_peak - peak)[..., None]
    sums = sums + across[:, :, None] * torch.exp(across_peak - peak)[..., None]
    return sums.flatten(1, 2)[:, :count], peak.flatten(1, 2)[:, :count]


def _blocks(tensor_BGSY: Tensor, chunk: int) -> Tensor:
    """[X, T, C, Y]."""
    return tensor_BGSY.flatten(0, 1).unflatten(1, (-1, chunk))


def _slices(blocks_XTCY: Tensor, neighbours: int) -> Tensor:
    """[X * N, W, Y]: the neighbouring blocks of each query block, one after another."""
    if neighbours == 1:
        return blocks_XTCY.flatten(0, 1)
    return blocks_XTCY.unfold(1, neighbours, 1).permute(0, 1, 4, 2, 3).flatten(2, 3).flatten(0, 1)


def _rows(query_BGRLY: Tensor, count: int, chunk: int) -> Tensor:
    """[X * N, R * C, Y]: the queries of a block, those of all heads of a group below one another."""
    blocks = pad(query_BGRLY, (0, 0, 0, count * chunk - query_BGRLY.shape[3])).unflatten(3, (count, chunk))
    return blocks.transpose(2, 3).flatten(3, 4).flatten(0, 2)
