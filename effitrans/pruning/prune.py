"""`prune`: remove heads, neurons and layers from a model for real.

The weights of what is removed are cut out of their matrices, so the model becomes smaller and faster as it
stands; nothing is masked. What is left computes exactly what the model computed with the removed units' output
set to zero. Accuracy is recovered afterwards by training or distillation, which take the result like any model.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.architectures import Architecture, Layer, adapter, evenly_chosen
from effitrans.checkpoint.record import is_frozen
from effitrans.errors import UsageError
from effitrans.pruning.calibration import Batches, calibration_batches
from effitrans.pruning.config import FFNPruning, HeadPruning, LayerPruning, Pruning
from effitrans.pruning.importance import IMPORTANCE
from effitrans.pruning.selection import select
from effitrans.pruning.sites import Site, ffn_sites, head_sites, layer_sites

logger = logging.getLogger(__name__)


def prune(
    model: PreTrainedModel,
    config: Pruning | HeadPruning | FFNPruning | LayerPruning,
    data: Any = None,
    *,
    processor: Any = None,
    inplace: bool = False,
) -> PreTrainedModel:
    """Remove attention heads, FFN neurons or layers.

    Args:
        model: a floating-point model of a family with an adapter.
        config: what to remove and how to choose it.
        data: labelled calibration data for a criterion that measures: a DataLoader of model inputs with labels,
            an encoded `datasets.Dataset`, a task or a task name (its train split). "magnitude" needs none.
        processor: tokenizer or image processor, needed where `data` is a task.
        inplace: change `model` itself, which saves the memory of a copy.

    Returns:
        The pruned model, an ordinary trainable one that saves and loads with `save_pretrained` and
        `from_pretrained`; its config carries the structure and the history.

    Raises:
        UsageError: no adapter for the architecture; integer weights; a criterion without its data; a ratio that
            empties a layer; a request that changes nothing. The model is then untouched.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from effitrans.pruning import HeadPruning, prune
        >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64))
        >>> pruned = prune(model, HeadPruning(ratio=0.5))
        >>> pruned.encoder.layer[0].attention.self.query.weight.shape
        torch.Size([16, 32])
    """
    wanted = config if isinstance(config, Pruning) else config.general()
    _refuse_integer_weights(model)
    batches = calibration_batches(model, wanted, data, processor)
    kept = _choose_layers(adapter(model), wanted, batches)
    _rehearse(adapter(model), wanted, kept, batches)

    target = model if inplace else copy.deepcopy(model)
    before = target.num_parameters()
    architecture = adapter(target)
    if kept is not None:
        architecture.drop_layers(kept)
    removed = _remove_units(architecture, wanted, batches)
    checkpoint.record(
        target,
        "prune",
        config,
        parameters_before=before,
        parameters_after=target.num_parameters(),
        units_removed=removed,
        layers_kept=kept,
    )
    logger.info("pruned %s: %d -> %d parameters", type(target).__name__, before, target.num_parameters())
    return target


def _refuse_integer_weights(model: PreTrainedModel) -> None:
    if getattr(model, "is_quantized", False) or is_frozen(model):
        raise UsageError(
            f"this {type(model).__name__} holds integer weights, which cannot be pruned. The order is: prune the "
            "floating-point model, recover it by training or distillation, quantize last."
        )


def _choose_layers(architecture: Architecture, config: Pruning, batches: Batches) -> dict[str, list[int]] | None:
    """Stack -> indices of the layers that stay; None where no layer is to go."""
    if config.layers is None:
        return None
    if not isinstance(config.layers, int):
        kept = {stack.name: sorted(config.layers) for stack in architecture.stacks}
    elif config.layer_choice == "even":
        kept = {
            stack.name: evenly_chosen(len(stack.modules), min(config.layers, len(stack.modules)))
            for stack in architecture.stacks
        }
    else:
        kept = _most_important_layers(architecture, config.layers, config.method, batches)
    architecture.check_layers(kept)
    return kept


def _most_important_layers(
    architecture: Architecture, number: int, method: str, batches: Batches
) -> dict[str, list[int]]:
    layers = architecture.layers
    scores = _scores(method, architecture.model, layer_sites(layers), batches)
    kept: dict[str, list[int]] = {}
    for stack in architecture.stacks:
        ranked = sorted(
            (-float(score), layer.index)
            for layer, score in zip(layers, scores, strict=True)
            if layer.stack == stack.name
        )
        kept[stack.name] = sorted(index for _, index in ranked[:number])
    return kept


def _scores(method: str, model: PreTrainedModel, sites: Sequence[Site], batches: Batches) -> list[Tensor]:
    scores = IMPORTANCE[method].score(model, sites, batches)
    for site, score in zip(sites, scores, strict=True):
        if not score.isfinite().all():
            raise UsageError(
                f"the {method} importance of {site.name} is not finite: the model's weights, or its loss on the "
                "calibration data, hold NaN or infinity. Score it in float32, or train it anew"
            )
    return scores


def _unit_sites(layers: Sequence[Layer], config: Pruning) -> tuple[list[Site], list[Site]]:
    """(head sites, FFN sites) of what the config asks for."""
    heads = head_sites(layers, config.grouped_queries) if config.heads else []
    return heads, ffn_sites(layers) if config.ffn else []


def _select(
    heads: Sequence[Site], neurons: Sequence[Site], scores: Sequence[Tensor], config: Pruning
) -> list[list[int]]:
    """The units to remove of each head site and then of each FFN site."""
    chosen = select(heads, scores[: len(heads)], config.heads, scope=config.scope, minimum=config.min_heads)
    return chosen + select(
        neurons, scores[len(heads) :], config.ffn, scope=config.scope, multiple_of=config.multiple_of
    )


def _rehearse(
    architecture: Architecture, config: Pruning, kept: Mapping[str, Sequence[int]] | None, batches: Batches
) -> None:
    """Raise now, before anything is changed, what would be raised halfway: how much goes depends on no score."""
    layers = architecture.layers
    left = [layer for layer in layers if kept is None or layer.index in kept[layer.stack]]
    if kept is not None and len(left) == len(layers):
        raise UsageError(f"layers={config.layers} removes nothing: the model has {len(layers)} layers")
    heads, neurons = _unit_sites(left, config)
    sites = [*heads, *neurons]
    chosen = _select(heads, neurons, [torch.zeros(site.units) for site in sites], config)
    if heads and not any(chosen[: len(heads)]):
        raise UsageError(_no_heads_to_remove(config, heads))
    if neurons and not any(chosen[len(heads) :]):
        raise UsageError(
            f"ffn={config.ffn:g} removes nothing from FFNs of at most {max(site.units for site in neurons)} neurons "
            f"when widths are rounded to multiples of {config.multiple_of}: raise the ratio or set multiple_of=1"
        )
    if sites:
        _scores(config.method, architecture.model, sites, batches[:1])


def _no_heads_to_remove(config: Pruning, heads: Sequence[Site]) -> str:
    most = max(site.units // site.blocks for site in heads)
    if most == 1:
        return (
            f"heads={config.heads:g} removes nothing: every layer has a single key/value head left to all its queries. "
            "To remove query heads, set grouped_queries='queries'"
        )
    return (
        f"heads={config.heads:g} removes nothing: of at most {most} heads in a layer less than half of one would go, "
        f"or min_heads={config.min_heads} protects all. Give a ratio of at least {1 / most:.3g}"
    )


def _remove_units(architecture: Architecture, config: Pruning, batches: Batches) -> dict[str, int]:
    """Score, choose and cut heads and neurons; returns site -> number of units removed."""
    heads, neurons = _unit_sites(architecture.layers, config)
    sites = [*heads, *neurons]
    if not sites:
        return {}
    scores = _scores(config.method, architecture.model, sites, batches)
    removed: dict[str, int] = {}
    for site, units in zip(sites, _select(heads, neurons, scores, config), strict=True):
        if units:
            expected = architecture.model.num_parameters() - site.parameters_of(units)
            site.remove(units)
            assert architecture.model.num_parameters() == expected, site.name
            removed[site.name] = len(units)
    return removed
