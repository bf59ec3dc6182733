"""Diagonal Fisher importance: the squared gradient of the loss with respect to a unit's gate.

    I_u = E_x (dL(x)/dg_u)^2

The empirical Fisher information of the gates approximates the Hessian of the loss at a trained model, where the
first-order term vanishes in the mean; so this is the second-order estimate of what switching one unit off costs,
interactions between units left out. Kwon et al. 2022 (arXiv:2204.09656), equation 7; Liu et al. 2021
(arXiv:2108.00708) for groups of channels. Beside Taylor it weighs the few examples with large gradients more.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.pruning.importance.gates import mean_over_examples
from effitrans.pruning.sites import PruningSite


def score(
    model: PreTrainedModel, sites: Sequence[PruningSite], batches: Iterable[Mapping[str, Tensor]]
) -> list[Tensor]:
    """Score units by the squared gradient of the loss with respect to their gates.

    Arguments, result and errors as in `taylor.score`.
    """
    return mean_over_examples(model, sites, batches, torch.square)
