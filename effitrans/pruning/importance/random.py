"""Random importance: the baseline that every other criterion has to beat."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.pruning.sites import PruningSite


def score(
    model: PreTrainedModel, sites: Sequence[PruningSite], batches: Iterable[Mapping[str, Tensor]] = (), *, seed: int = 0
) -> list[Tensor]:
    """Score units by uniform random numbers.

    Args:
        model: not used.
        sites: what to score.
        batches: not used.
        seed: of the numbers; the same seed and sites give the same scores.

    Returns:
        One float32 tensor [units] per site.
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(site.units, generator=generator) for site in sites]
