"""From the last hidden states of the tokens of a text to one vector, under the names of sentence-transformers.

B texts, L tokens, C width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _cls(states_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    return states_BLC[torch.arange(len(states_BLC)), mask_BL.int().argmax(1)]


def _last(states_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    return states_BLC[torch.arange(len(states_BLC)), mask_BL.shape[1] - 1 - mask_BL.int().flip(1).argmax(1)]


def _max(states_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    return states_BLC.masked_fill(mask_BL[..., None] == 0, float("-inf")).amax(1)


def _weighted(states_BLC: Tensor, weights_BL: Tensor, power: float = 1.0) -> Tensor:
    weights_BL1 = weights_BL[..., None].to(states_BLC.dtype)
    return (states_BLC * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1) ** power


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _weighted,
    "first": _cls,
    "cls": _cls,
    "max": _max,
    "lasttoken": _last,
    "mean_sqrt_len_tokens": lambda states, mask: _weighted(states, mask, 0.5),
    "weightedmean": lambda states, mask: _weighted(states, mask.cumsum(1) * mask),
}
"""Name -> [B, L, C] and the attention mask [B, L] to [B, C]. `first` and `cls` are the first token; in `weightedmean`
the n-th token counts n times."""


def pool(states_BLC: Tensor, mask_BL: Tensor, names: str | Sequence[str]) -> Tensor:
    """The vectors [B, C] of texts; several poolings are joined, [B, C * names].

    >>> pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]), ["mean", "max"])
    tensor([[2., 3.]])
    """
    names = [names] if isinstance(names, str) else names
    return torch.cat([POOLINGS[name](states_BLC, mask_BL) for name in names], -1)
