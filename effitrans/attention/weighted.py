"""The chunked form of linear attention where keys carry weights in the log domain, and a band may be treated apart.

Key j enters with phi(k_j) exp(c_j), query i with phi(q_i) exp(a_i). Random features of the exponential need this: as
they stand, they leave the range of float32. Everything is kept relative to a running maximum of
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

from effitrans.attention.chunked import normalise, run_segment, with_ones

EMPTY = -1e30
"""The log weight of a key that is not there; finite, so that the difference of two is a number."""

CPU_SEGMENT_BYTES, SEGMENT_BYTES = 4 * 2**20, 512 * 2**20
"""Intermediate results of more bytes than this are computed in segments, on CPUs and elsewhere. Small ones stay in the
cache, and the allocator reuses their memory."""

RECOMPUTE_BYTES = 64 * 2**20
"""With segments of more bytes than this in all, training computes them again in the backward pass."""

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
    sequence_X: Tensor
    """Which of all B G sequences these are."""
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
    keys = keys.pad(left * chunk - history, count * chunk - length + right * chunk)
    neighbours = left + 1 + right
    position = torch.arange(neighbours * chunk, device=query_BGRLF.device)
    ahead = position - position[left * chunk : (left + 1) * chunk, None]

    blocks = [
        _blocks(keys.features_BGSF, chunk),
        _blocks(keys.log_BGS.unsqueeze(-1), chunk).squeeze(-1),
        _blocks(keys.value_BGSE, chunk),
        None if keys.key_BGSD is None else _blocks(keys.key_BGSD, chunk),
        _rows(query_BGRLF, count, chunk),
        None if query_log_BGRL is None else _rows(query_log_BGRL.unsqueeze(-1), count, chunk),
        None if query_BGRLD is None else _rows(query_BGRLD, count, chunk),
        None if memory is None else memory.sums_BGFE.flatten(0, 1),
        None if memory is None else memory.peak_BG.flatten(),
    ]
    sequence = torch.arange(batch * groups, device=query_BGRLF.device)
    size = count * repeats * chunk * neighbours * chunk * query_BGRLF.element_size()
    spans = segments(batch * groups, size, query_BGRLF.device)
    recompute = len(spans) > 1 and batch * groups * size > RECOMPUTE_BYTES
    outputs = [
        run_segment(
            _attend_sequences,
            mix,
            ahead,
            after is not None,
            sequence[span],
            *(None if tensor is None else tensor[span] for tensor in blocks),
            recompute=recompute,
        )
        for span in spans
    ]
    out = torch.cat(outputs).view(batch, groups, count, repeats, chunk, -1).transpose(2, 3)
    return out.flatten(3, 4)[..., :length, :]


def segments(count: int, size: int, device: torch.device) -> list[slice]:
    """Spans of `count` items of `size` bytes that fit in a cache; if all do, one without bounds.

    So it is under a compiler, which fuses what is done with them, and must not depend on the length.
    """
    if torch.compiler.is_compiling():
        return [slice(None)]
    step = max(1, (CPU_SEGMENT_BYTES if device.type == "cpu" else SEGMENT_BYTES) // size)
    if step >= count:
        return [slice(None)]
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _attend_sequences(
    mix: Mix,
    ahead_CW: Tensor,
    both: bool,
    sequence_X: Tensor,
    features_XTCF: Tensor,
    logs_XTC: Tensor,
    values_XTCE: Tensor,
    keys_XTCD: Tensor | None,
    query_XNYF: Tensor,
    query_log_XNY1: Tensor | None,
    query_XNYD: Tensor | None,
    memory_XFE: Tensor | None,
    memory_peak_X: Tensor | None,
) -> Tensor:
    """The output [X, N, Y, D] of some of the sequences, Y = R C."""
    count, neighbours = query_XNYF.shape[1], ahead_CW.shape[1] // ahead_CW.shape[0]
    memory = None if memory_XFE is None or memory_peak_X is None else (memory_XFE, memory_peak_X)
    far = _far(features_XTCF, logs_XTC, values_XTCE, count, neighbours, memory, both)

    outputs = []
    size = query_XNYF.shape[0] * query_XNYF.shape[2] * ahead_CW.shape[1] * query_XNYF.element_size()
    for span in segments(count, size, query_XNYF.device):
        near = span if span.stop is None else slice(span.start, span.stop + neighbours - 1)
        inputs = (features_XTCF[:, near], logs_XTC[:, near], values_XTCE[:, near], _part(keys_XTCD, near))
        queries = (query_XNYF[:, span], _part(query_log_XNY1, span), _part(query_XNYD, span))
        sums = [(total[:, span], peak[:, span]) for total, peak in far]
        outputs.append(_near(mix, ahead_CW, sequence_X, *inputs, *queries, sums))
    return torch.cat(outputs, dim=1)


def _part(tensor_XN: Tensor | None, span: slice) -> Tensor | None:
    return None if tensor_XN is None else tensor_XN[:, span]


def _near(
    mix: Mix,
    ahead_CW: Tensor,
    sequence_X: Tensor,
    features_XTCF: Tensor,
    logs_XTC: Tensor,
    values_XTCE: Tensor,
    keys_XTCD: Tensor | None,
    query_XNYF: Tensor,
    query_log_XNY1: Tensor | None,
    query_XNYD: Tensor | None,
    far: list[tuple[Tensor, Tensor]],
) -> Tensor:
    """The output [X, N, Y, D] of query blocks from the blocks around them and the sums `far`."""
    number, count, rows, _ = query_XNYF.shape
    chunk, width = ahead_CW.shape
    neighbours = width // chunk
    shape = (number, count, rows // chunk, chunk)
    query = query_XNYF.flatten(0, 1)
    products = query @ _slices(features_XTCF, neighbours).mT
    scores = None
    if query_XNYD is not None and keys_XTCD is not None:
        scores = (query_XNYD.flatten(0, 1) @ _slices(keys_XTCD, neighbours).mT).view(*shape, width)
    weights, factors = mix(
        Blocks(
            products=products.view(*shape, width),
            scores=scores,
            query_log=None if query_log_XNY1 is None else query_log_XNY1.view(*shape, 1),
            key_log=_slices(logs_XTC.unsqueeze(-1), neighbours).view(number, count, 1, 1, -1),
            ahead_CW=ahead_CW,
            sequence_X=sequence_X,
            peaks=[peak[:, :, None, None, None] for _, peak in far],
        )
    )
    out = weights.reshape(products.shape) @ _slices(values_XTCE, neighbours)
    for (sums, _), factor in zip(far, factors, strict=True):
        read = query @ sums.reshape(-1, query.shape[-1], out.shape[-1])
        out = out + (read.view(*shape, -1) * factor).view_as(out)
    return normalise(out).view(number, count, rows, -1)


def _far(
    features_XTCF: Tensor,
    logs_XTC: Tensor,
    values_XTCE: Tensor,
    count: int,
    neighbours: int,
    memory: tuple[Tensor, Tensor] | None,
    both: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Sums [X, N, F * E] and peaks [X, N] over the blocks before, and those after, the neighbours of a query block."""
    if count == 1:
        # nothing lies further away but the memory
        return [] if memory is None else [(memory[0].flatten(1)[:, None], memory[1][:, None])]
    peak = logs_XTC.detach().amax(-1)
    scaled = features_XTCF * torch.exp(logs_XTC - peak[..., None])[..., None]
    sums = (scaled.transpose(-1, -2) @ values_XTCE).flatten(2)
    far = []
    if memory is None:
        earlier = _exclusive_sums(sums[:, :count], peak[:, :count])
    else:
        with_memory = torch.cat([memory[0].flatten(1)[:, None], sums[:, :count]], dim=1)
        peaks = torch.cat([memory[1][:, None], peak[:, :count]], dim=1)
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
    """[X, N, R * C, Y]: the queries of a block, those of all heads of a group below one another."""
    blocks = pad(query_BGRLY, (0, 0, 0, count * chunk - query_BGRLY.shape[3])).unflatten(3, (count, chunk))
    return blocks.transpose(2, 3).flatten(3, 4).flatten(0, 1)
