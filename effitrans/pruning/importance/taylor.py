"""First-order Taylor importance: how much the loss changes when a unit is switched off, to first order.

Switching the gate g_u of a unit off changes the loss by about -dL/dg_u, and the importance is the mean over
examples of its absolute value:

    I_u = E_x |dL(x)/dg_u|

Michel et al. 2019 (arXiv:1905.10650), equation 2, for heads; Molchanov et al. 2019 (arXiv:1906.10771), section
3.1, for neurons: dL/dg_u is the sum of gradient times weight over the unit's outgoing weights. The absolute
value is taken for each example, so contributions of different sign do not cancel.
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
    """Score units by the gradient of the loss with respect to their gates.

    Args:
        model: must return a loss when the batch holds labels. Runs in eval mode, is left as it was.
        sites: what to score.
        batches: model inputs with labels; the first dimension is the example.

    Returns:
        One float32 tensor [units] per site.

    Raises:
        UsageError: there are no batches, or the model returns no loss for them.
    """
    return mean_over_examples(model, sites, batches, torch.abs)
