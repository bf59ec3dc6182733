"""Movement: units whose weights fine-tuning moves towards zero matter least.

While the model is fine-tuned, every weight gathers how far the updates carry it away from zero (Sanh et al. 2020,
arXiv:2005.07683, equation 4, the learning rate left out), and a unit is the sum over its weights (Lagunas et al.
2021, arXiv:2109.04838, for blocks):

    S_u = - sum_t sum_{w in u} (dL/dw)^(t) w^(t)

The fine-tuning is one pass over the calibration batches with AdamW at a constant rate, on a copy of the model and
without dropout, so the same batches give the same scores. Scores may be negative. In the papers the pass is the
whole fine-tuning and pruning happens meanwhile; here it is as long as the calibration set.

Cost: memory of a second model with gradients and two moments; one forward and one backward pass per batch.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.pruning.importance.gates import loss_of, require_examples
from effitrans.pruning.sites import PruningSite, Slice

LEARNING_RATE = 5e-5
"""Of the fine-tuning, as in Sanh et al. for BERT (3e-5 to 5e-5)."""


def score(
    model: PreTrainedModel, sites: Sequence[PruningSite], batches: Iterable[Mapping[str, Tensor]]
) -> list[Tensor]:
    """Score units by the movement of their weights.

    Args:
        model: must return a loss when the batch holds labels. Not touched.
        sites: what to score.
        batches: model inputs with labels, in the order in which they are trained on.

    Returns:
        One float32 tensor [units] per site.

    Raises:
        UsageError: there are no batches, or the model returns no loss for them.
    """
    trained = copy.deepcopy(model).eval().requires_grad_(True)
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    moved = [_on(trained, names, site) for site in sites]
    weights = {part.module.weight for site in moved for part in site.slices}
    optimizer = torch.optim.AdamW(trained.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    totals = [torch.zeros(site.units) for site in sites]
    examples = 0
    for batch in batches:
        examples += len(next(iter(batch.values())))
        optimizer.zero_grad()
        with torch.enable_grad():
            loss_of(trained, batch).backward()
        products: dict[nn.Parameter, Tensor] = {
            weight: -weight.grad * weight.detach()  # type: ignore[misc,operator]
            for weight in weights
            if weight.grad is not None  # type: ignore[union-attr]
        }
        for total, site in zip(totals, moved, strict=True):
            for part in site.slices:
                product = products.get(part.module.weight)  # type: ignore[arg-type]
                if product is not None:
                    total += part.pick(product).float().sum(1).cpu()
        optimizer.step()
    require_examples(examples)
    return totals


def _on(model: nn.Module, names: Mapping[nn.Module, str], site: PruningSite) -> PruningSite:
    """The same site of a copy of the model."""

    def moved(part: Slice) -> Slice:
        return replace(part, module=model.get_submodule(names[part.module]))

    return replace(site, slices=tuple(moved(part) for part in site.slices))
