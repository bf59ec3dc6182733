"""Activation-based importance: outgoing weights times the size of what they are fed with.

Sun et al. 2023 (arXiv:2306.11695), equation 1, score a single weight by |W_ij| ||X_j||_2, where X_j is input
feature j over all calibration tokens. The score of a unit is the Euclidean norm of those scores over all weights
through which it acts on the residual stream:

    I_u = sqrt( sum_{j in u} mean(X_j^2) sum_i W_ij^2 )

with the mean over tokens, so that calibration sets of different size compare. Needs inputs but no labels and no
backward pass. Padding tokens are left out where the batch has an attention mask of the same shape and the model
has a single stack; in an encoder-decoder they count.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.architectures import in_features
from effitrans.pruning.importance.gates import frozen_in_eval_mode, require_examples
from effitrans.pruning.sites import PruningSite


def score(
    model: PreTrainedModel, sites: Sequence[PruningSite], batches: Iterable[Mapping[str, Tensor]]
) -> list[Tensor]:
    """Score units by their outgoing weights and activations.

    Args:
        model: runs in eval mode, is left as it was.
        sites: what to score.
        batches: model inputs; labels are not needed.

    Returns:
        One float32 tensor [units] per site.

    Raises:
        UsageError: there are no batches.
    """
    modules = {part.module for site in sites for part in site.gates}
    power = mean_squared_inputs(model, modules, batches)
    scores = []
    for site in sites:
        total = torch.zeros(site.units)
        for part in site.gates:
            units, features = part.index_UK.shape
            weight_UKO = part.weights().float().cpu().reshape(units, features, -1)
            total += (weight_UKO.square().sum(2) * power[part.module][part.index_UK]).sum(1)
        scores.append(total.sqrt())
    return scores


def mean_squared_inputs(
    model: PreTrainedModel, modules: Iterable[nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> dict[nn.Module, Tensor]:
    """Mean square over tokens of every input feature of linear modules: module -> [features], float32, on the CPU.

    A module that does not run is given zeros.
    """
    totals: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}
    mask: list[Tensor | None] = [None]

    def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs = arguments[0].detach()
        kept = inputs.reshape(-1, inputs.shape[-1])
        if mask[0] is not None and inputs.shape[:-1] == mask[0].shape:
            kept = kept[mask[0].reshape(-1).bool().to(kept.device)]
        squares = kept.float().square().sum(0).cpu()
        totals[module] = totals[module] + squares if module in totals else squares
        counts[module] = counts.get(module, 0) + len(kept)

    examples = 0
    modules = list(modules)
    with ExitStack() as handles, frozen_in_eval_mode(model), torch.no_grad():
        for module in modules:
            handles.callback(module.register_forward_pre_hook(hook).remove)
        for batch in batches:
            single = not getattr(model.config, "is_encoder_decoder", False)
            mask[0] = batch.get("attention_mask") if single else None
            examples += len(next(iter(batch.values())))
            model(**{name: value.to(model.device) for name, value in batch.items()})
    require_examples(examples)
    return {
        module: totals[module] / max(1, counts[module]) if module in totals else torch.zeros(in_features(module))
        for module in modules
    }
