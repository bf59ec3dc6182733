"""`prune`: remove heads, neurons, channels, sublayers and layers from a model for real.

The weights of what is removed are cut out of their matrices, so the model becomes smaller and faster as it
stands; nothing is masked. What is left computes exactly what the model computed with the removed units' output
set to zero (channels of the residual stream: see `hidden`). Accuracy is recovered by training or distillation,
afterwards or between the steps of an iterative pruning, which take the result like any model.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.architectures import ARCHITECTURES, Architecture, Layer, adapter
from effitrans.checkpoint.accepting import takes_models
from effitrans.checkpoint.record import is_frozen
from effitrans.config import as_config
from effitrans.errors import UsageError
from effitrans.pruning.calibration import calibration_batches
from effitrans.pruning.config import FFNPruning, HeadPruning, HiddenPruning, LayerPruning, Pruning
from effitrans.pruning.hidden import STREAM, carriers, narrow, stream_sites
from effitrans.pruning.l0.config import L0Pruning
from effitrans.pruning.scores import Scorer, Scores, measured
from effitrans.pruning.search.config import Search
from effitrans.pruning.selection import select
from effitrans.pruning.sites import Site, ffn_sites, head_sites
from effitrans.pruning.sparse.config import Sparsity
from effitrans.pruning.whole import NOTHING_WHOLE, Whole, choose

logger = logging.getLogger(__name__)

KINDS = (Pruning, HeadPruning, FFNPruning, HiddenPruning, LayerPruning, L0Pruning, Search, Sparsity)
"""The configs that `prune` takes."""

Recover = Callable[[PreTrainedModel], None]
"""Trains the model it is given, in place."""


@takes_models("model")
def prune(
    model: PreTrainedModel,
    config: "Pruning | HeadPruning | FFNPruning | HiddenPruning | LayerPruning | L0Pruning | Search | Sparsity",
    data: Any = None,
    *,
    processor: Any = None,
    scores: Scores | None = None,
    recover: Recover | None = None,
    storage: str | Path | None = None,
    inplace: bool = False,
) -> PreTrainedModel:
    """Remove attention heads, FFN neurons, channels of the hidden width, sublayers or layers.

    Args:
        model: a floating-point model, or its folder, of a family with an adapter; of any other, FFN neurons can be
            removed where torch-pruning's dependency graph shows them.
        config: what to remove and how to choose it; or `L0Pruning`, for gates that learn it; or a `Search` for the
            best model inside a budget; or a `Sparsity` for single weights.
        data: calibration data for a criterion that measures, in any form of `effitrans.tasks.forms`, with labels for
            the criteria by gradient.
        processor: tokenizer or image processor of a task or of texts. Default: the one beside the model's weights.
        scores: importance measured before on this model (`measure_importance`); the model is then not scored anew,
            neither at the start nor after its layers have gone.
        recover: called after each step but the last of an iterative pruning, with the model so far. Layers that go
            are then recorded as a pass of their own.
        storage: JSON file of a `Search`, from which a killed search goes on.
        inplace: change `model` itself, which saves the memory of a copy; a search always returns a copy.

    Returns:
        The pruned model, an ordinary trainable one that saves and loads with `save_pretrained` and
        `from_pretrained`; its config carries the structure and the history.

    Raises:
        UsageError: no adapter for the architecture; integer weights; a criterion without its data; a ratio that
            empties a layer; a request that changes nothing; scores of another model or method. The model is then
            untouched.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from effitrans.pruning import HeadPruning, prune
        >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64))
        >>> pruned = prune(model, HeadPruning(ratio=0.5))
        >>> pruned.encoder.layer[0].attention.self.query.weight.shape
        torch.Size([16, 32])
    """
    config = as_config(config, "prune", KINDS, "HeadPruning(ratio=0.5)")
    if isinstance(config, Sparsity):
        if scores is not None or recover is not None or storage is not None:
            raise UsageError("single weights have scores of their own and go at once: leave the other arguments out")
        from effitrans.pruning.sparse.sparsify import sparsify

        return sparsify(model, config, data, processor=processor, inplace=inplace)
    if isinstance(config, Search):
        return _searched(model, config, data, processor, scores, recover, storage, inplace)
    if isinstance(config, L0Pruning):
        if scores is not None or recover is not None or storage is not None or inplace:
            raise UsageError("gates learn on a copy, which they train meanwhile: leave the other arguments out")
        from effitrans.pruning.l0.learn import learn_gates

        return learn_gates(model, config, data, processor=processor)
    if storage is not None:
        raise UsageError("storage is for a search, and this is none: leave it out")
    wanted = config if isinstance(config, Pruning) else config.general()
    refuse_unprunable(model)
    if getattr(model.config, "model_type", None) not in ARCHITECTURES and scores is None and recover is None:
        from effitrans.pruning.generic import prune_generic

        return prune_generic(model, wanted, data, processor=processor, inplace=inplace)
    _check_together(wanted, scores, recover)
    batches = [] if scores is not None else calibration_batches(model, wanted, data, processor)
    score = scores.of if scores is not None else measured(wanted.method, batches, wanted.seed)
    trial = scores.of if scores is not None else measured(wanted.method, batches[:1], wanted.seed)
    whole = choose(adapter(model), wanted, score)
    _rehearse(adapter(model), wanted, whole, trial)

    target = model if inplace else copy.deepcopy(model)
    before = target.num_parameters()
    architecture = adapter(target)
    depths = {stack.name: len(stack.modules) for stack in architecture.stacks}
    layers = {} if whole.layers is None else {"layers_before": depths, "layers_kept": whole.layers}
    if scores is not None:
        left = [layer for layer in architecture.layers if whole.stays(layer)]
        removed = _remove_units(target, _Sites.of(left, wanted, whole), wanted, score, _ratios(wanted))
        whole.remove(architecture)
    else:
        whole.remove(architecture)
        if recover is not None and layers:
            # On its own: what trains the model between the steps learns from the history which layers these are.
            after = target.num_parameters()
            checkpoint.record(target, "prune", config, parameters_before=before, parameters_after=after, **layers)
            before, layers = after, {}
        removed = _remove_in_steps(architecture, wanted, score, recover)
    checkpoint.record(
        target,
        "prune",
        config,
        parameters_before=before,
        parameters_after=target.num_parameters(),
        units_removed=removed,
        **layers,
        **_blocks_removed(whole),
    )
    logger.info("pruned %s: %d -> %d parameters", type(target).__name__, before, target.num_parameters())
    return target


def _searched(
    model: PreTrainedModel,
    config: Search,
    data: Any,
    processor: Any,
    scores: Scores | None,
    recover: Recover | None,
    storage: str | Path | None,
    inplace: bool,
) -> PreTrainedModel:
    if scores is not None or recover is not None or inplace:
        raise UsageError("a search measures importance itself, recovers nothing and returns a copy: leave these out")
    from effitrans.pruning.search.search import search

    return search(model, config, data, processor=processor, storage=storage)


def _blocks_removed(whole: Whole) -> dict[str, list[str]]:
    lost = {"attention_removed": whole.attention, "ffn_removed": whole.ffn}
    return {name: [f"{stack}.{index}" for stack, index in places] for name, places in lost.items() if places}


def refuse_unprunable(model: PreTrainedModel) -> None:
    """Raise for a model whose weights are integers, or shared in a way that its architecture does not know.

    Raises:
        UsageError: with the order in which the passes go, or the weights that are shared.
    """
    if getattr(model, "is_quantized", False) or is_frozen(model):
        raise UsageError(
            f"this {type(model).__name__} holds integer weights, which cannot be pruned. The order is: prune the "
            "floating-point model, recover it by training or distillation, quantize last."
        )
    checkpoint.refuse_unknown_sharing(model)


def _check_together(config: Pruning, scores: Scores | None, recover: Recover | None) -> None:
    if recover is not None and config.steps == 1:
        raise UsageError("recover is called between the steps of an iterative pruning: set steps to more than 1")
    if scores is None:
        return
    if config.steps > 1:
        raise UsageError(f"steps={config.steps} measures anew before every step: leave the scores out")
    if config.method != scores.method and config.uses_scores:
        raise UsageError(
            f"these scores were measured by {scores.method!r} and the config asks for method {config.method!r}: "
            f"set method={scores.method!r}, or measure again"
        )
    if config.heads and config.grouped_queries != scores.grouped_queries:
        raise UsageError(
            f"these scores are of {scores.grouped_queries!r} and the config has "
            f"grouped_queries={config.grouped_queries!r}: measure again"
        )


@dataclass(frozen=True)
class _Sites:
    """Where heads, neurons and channels are to go."""

    heads: list[Site]
    neurons: list[Site]
    channels: list[Site]

    @classmethod
    def of(cls, layers: Sequence[Layer], config: Pruning, whole: Whole = NOTHING_WHOLE) -> "_Sites":
        """The sites of what the config asks for, in layers of the original model less what goes as a whole."""
        attended = [
            layer if (layer.stack, layer.index) not in whole.attention else _without_self_attention(layer)
            for layer in layers
        ]
        fed = [layer for layer in layers if (layer.stack, layer.index) not in whole.ffn]
        heads = head_sites(attended, config.grouped_queries) if config.heads else []
        return cls(heads, ffn_sites(fed) if config.ffn else [], stream_sites(layers) if config.hidden else [])

    @property
    def kinds(self) -> tuple[list[Site], list[Site], list[Site]]:
        return self.heads, self.neurons, self.channels

    @property
    def all(self) -> list[Site]:
        return [*self.heads, *self.neurons, *self.channels]


def _without_self_attention(layer: Layer) -> Layer:
    return replace(layer, attention=tuple(site for site in layer.attention if site.is_cross))


Ratios = tuple[float, float, float]
"""Of heads, neurons and channels."""


def _ratios(config: Pruning) -> Ratios:
    return config.heads, config.ffn, config.hidden


def _select(sites: _Sites, scores: Sequence[Tensor], config: Pruning, ratios: Ratios) -> list[list[int]]:
    """The units to remove of each head site, of each FFN site and then of the residual stream, at these ratios."""
    heads = len(sites.heads)
    neurons = heads + len(sites.neurons)
    multiple_of = config.multiple_of
    return [
        *select(sites.heads, scores[:heads], ratios[0], scope=config.scope, minimum=config.min_heads),
        *select(sites.neurons, scores[heads:neurons], ratios[1], scope=config.scope, multiple_of=multiple_of),
        *select(sites.channels, scores[neurons:], ratios[2], multiple_of=multiple_of),
    ]


def _rehearse(architecture: Architecture, config: Pruning, whole: Whole, score: Scorer) -> None:
    """Raise now, before anything is changed, what would be raised halfway: how much goes depends on no score."""
    left = [layer for layer in architecture.layers if whole.stays(layer)]
    sites = _Sites.of(left, config, whole)
    chosen = _select(sites, [torch.zeros(site.units) for site in sites.all], config, _ratios(config))
    heads, neurons = len(sites.heads), len(sites.heads) + len(sites.neurons)
    if sites.heads and not any(chosen[:heads]):
        raise UsageError(_no_heads_to_remove(config, sites.heads))
    if sites.neurons and not any(chosen[heads:neurons]):
        raise UsageError(
            f"ffn={config.ffn:g} removes nothing from FFNs of at most {max(s.units for s in sites.neurons)} neurons "
            f"when widths are rounded to multiples of {config.multiple_of}: raise the ratio or set multiple_of=1"
        )
    if sites.channels and not any(chosen[neurons:]):
        raise UsageError(
            f"hidden={config.hidden:g} removes nothing from a hidden width of {sites.channels[0].units} when it is "
            f"rounded to a multiple of {config.multiple_of}: raise the ratio or set multiple_of=1"
        )
    if sites.channels:
        carriers(architecture)
    if sites.all:
        score(architecture.model, sites.all)


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


def _remove_in_steps(
    architecture: Architecture, config: Pruning, score: Scorer, recover: Recover | None
) -> dict[str, int]:
    """Score, choose and cut in as many steps as the config says; returns site -> number of units removed."""
    total = _units(_Sites.of(architecture.layers, config))
    removed: dict[str, int] = {}
    for step in range(1, config.steps + 1):
        sites = _Sites.of(architecture.layers, config)
        gone = config.gone_after(step)
        # What is to go of the units that are left, so that all in all the ratio of the original ones has gone.
        ratios = [
            1 - (1 - ratio * gone) * before / left if left else 0.0
            for ratio, before, left in zip(_ratios(config), total, _units(sites), strict=True)
        ]
        chosen = _ratios(config) if config.steps == 1 else (ratios[0], ratios[1], ratios[2])
        for name, count in _remove_units(architecture.model, sites, config, score, chosen).items():
            removed[name] = removed.get(name, 0) + count
        if recover is not None and step < config.steps:
            logger.info("step %d/%d: %d parameters left", step, config.steps, architecture.model.num_parameters())
            recover(architecture.model)
    return removed


def _units(sites: _Sites) -> list[int]:
    return [sum(site.units for site in kind) for kind in sites.kinds]


def _remove_units(
    model: PreTrainedModel, sites: _Sites, config: Pruning, score: Scorer, ratios: Ratios
) -> dict[str, int]:
    """Score, choose and cut heads, neurons and channels; returns site -> number of units removed."""
    if not sites.all:
        return {}
    scores = score(model, sites.all)
    removed: dict[str, int] = {}
    for site, units in zip(sites.all, _select(sites, scores, config, ratios), strict=True):
        if units:
            removed[site.name] = len(units)
            if site.name == STREAM:
                narrow(adapter(model), units)
            else:
                remove_checked(model, site, units)
    return removed


def remove_checked(model: PreTrainedModel, site: Site, units: Sequence[int]) -> None:
    """Cut units out of a site, and make sure that exactly their parameters have gone."""
    expected = model.num_parameters() - site.parameters_of(units) - _parameters(site.operators)
    site.remove(units)
    assert model.num_parameters() == expected + _parameters(site.operators), site.name


def _parameters(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
