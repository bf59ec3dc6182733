"""Magnitude: the norm of all weights that a unit owns, over all its matrices, without biases.

Han et al. 2015 (arXiv:1506.02626) for single weights, Li et al. 2017 (arXiv:1608.08710) for whole structures, by
their L1 norm; the L2 norm is the default here. Needs no data; costs one pass over the weights. It is blind to the
inputs that a unit sees.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.pruning.sites import PruningSite


def score(
    model: PreTrainedModel, sites: Sequence[PruningSite], batches: Iterable[Mapping[str, Tensor]] = ()
) -> list[Tensor]:
    """Score units by the Euclidean norm of their weights.

    Args:
        model: not used; the sites point at the weights.
        sites: what to score.
        batches: not used.

    Returns:
        One float32 tensor [units] per site.
    """
    return [
        torch.stack([part.weights().float().square().sum(1) for part in site.slices]).sum(0).sqrt().cpu()
        for site in sites
    ]


def score_l1(
    model: PreTrainedModel, sites: Sequence[PruningSite], batches: Iterable[Mapping[str, Tensor]] = ()
) -> list[Tensor]:
    """Score units by the sum of the absolute values of their weights; otherwise as `score`."""
    return [torch.stack([part.weights().float().abs().sum(1) for part in site.slices]).sum(0).cpu() for site in sites]
