"""`prune_units`: what `prune` runs for `Pruning` and the configs of one unit.

The weights of what is removed are cut out of their matrices, so the model becomes smaller and faster as it
stands; nothing is masked. What is left computes exactly what the model computed with the removed units' output
set to zero (channels of the residual stream: see `units.hidden`).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.architectures import ARCHITECTURES, Architecture, Layer, adapter
from effitrans.checkpoint.accepting import takes_models
from effitrans.config import as_config
from effitrans.errors import UsageError
from effitrans.pruning.accepting import refuse_unprunable
from effitrans.pruning.calibration import criterion_batches
from effitrans.pruning.config import SINGLE, Pruning
from effitrans.pruning.generic import prune_generic
from effitrans.pruning.recording import logger, record
from effitrans.pruning.scores import Scores, measured
from effitrans.pruning.sites import PruningSite
from effitrans.pruning.units import RATIO_UNITS, WHOLE_UNITS
from effitrans.pruning.units.base import RatioUnit, Scorer
from effitrans.pruning.units.whole import Whole

Recover = Callable[[PreTrainedModel], None]
"""Trains the model it is given, in place."""

Ratios = Mapping[RatioUnit, float]


@takes_models("model")
def prune_units(
    model: PreTrainedModel,
    config: Any,
    data: Any = None,
    *,
    processor: Any = None,
    scores: Scores | None = None,
    recover: Recover | None = None,
    inplace: bool = False,
) -> PreTrainedModel:
    """As `prune` with a `Pruning` or the config of one unit, with scores or recovery beside it.

    Args:
        model: as in `prune`.
        config: what to remove and how to choose it.
        data: as in `prune`.
        processor: as in `prune`.
        scores: importance measured before on this model (`measure_importance`); the model is then not scored anew,
            neither at the start nor after its layers have gone.
        recover: called after each step but the last of an iterative pruning, with the model so far. What goes as a
            whole is then recorded as a pass of its own.
        inplace: as in `prune`.

    Returns:
        As `prune`.

    Raises:
        UsageError: as `prune`; scores of another model or method; `recover` in one step.

    >>> from transformers import BertConfig, BertModel
    >>> from effitrans.pruning import HeadPruning, measure_importance, prune_units
    >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64))
    >>> scores = measure_importance(model)
    >>> [prune_units(model, HeadPruning(ratio=r), scores=scores).num_parameters() for r in (0.25, 0.5)]
    [1190912, 1178240]
    """
    config = as_config(config, "prune", (Pruning, *SINGLE), "HeadPruning(ratio=0.5)")
    wanted = config if isinstance(config, Pruning) else config.general()
    refuse_unprunable(model)
    if getattr(model.config, "model_type", None) not in ARCHITECTURES and scores is None and recover is None:
        return prune_generic(model, wanted, data, processor=processor, inplace=inplace)
    _check_together(wanted, scores, recover)
    batches = [] if scores is not None else criterion_batches(model, wanted, data, processor)
    score = scores.of if scores is not None else measured(wanted.method, batches, wanted.seed)
    trial = scores.of if scores is not None else measured(wanted.method, batches[:1], wanted.seed)
    whole = choose_whole(adapter(model), wanted, score)
    _rehearse(adapter(model), wanted, whole, trial)

    target = model if inplace else copy.deepcopy(model)
    before = target.num_parameters()
    architecture = adapter(target)
    told = whole.summary(architecture)
    if scores is not None:
        # They name the places of the model as it is, so what goes as a whole goes last.
        removed = _remove(target, _Sites.of(whole.left(architecture), wanted), wanted, score, _ratios(wanted))
        whole.remove(architecture)
    else:
        whole.remove(architecture)
        if recover is not None and told:
            # On its own: what trains the model between the steps learns from the history which layers these are.
            record(target, config, before, **told)
            before, told = target.num_parameters(), {}
        removed = _remove_in_steps(architecture, wanted, score, recover)
    return record(target, config, before, units_removed=removed, **told)


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


def choose_whole(architecture: Architecture, config: Pruning, score: Scorer) -> Whole:
    """Which layers and sublayers go: the larger units first, then of what these leave.

    Raises:
        UsageError: a request that removes nothing, everything or what is not there.
    """
    whole = Whole()
    for unit in reversed(WHOLE_UNITS):
        positions = unit.choose(architecture, whole.left(architecture), config, score)
        whole = Whole({unit: positions, **whole.lost})
    whole.check(architecture)
    return whole


@dataclass(frozen=True)
class _Sites:
    """Where the units are that go by a ratio."""

    of_unit: Mapping[RatioUnit, list[PruningSite]]

    @classmethod
    def of(cls, layers: Sequence[Layer], config: Pruning) -> "_Sites":
        """The sites of what the config asks for."""
        return cls({unit: unit.sites(layers, config) if unit.asked(config) else [] for unit in RATIO_UNITS})

    @property
    def all(self) -> list[PruningSite]:
        return [site for sites in self.of_unit.values() for site in sites]

    def units(self) -> dict[RatioUnit, int]:
        """How many parts each unit has in all."""
        return {unit: sum(site.units for site in sites) for unit, sites in self.of_unit.items()}

    def select(
        self, scores: Sequence[Tensor], config: Pruning, ratios: Ratios
    ) -> dict[RatioUnit, list[tuple[PruningSite, list[int]]]]:
        """The parts that go at these ratios, of each site; `scores` are in the order of `all`."""
        left = iter(scores)
        chosen = {}
        for unit, sites in self.of_unit.items():
            own = [next(left) for _ in sites]
            chosen[unit] = list(zip(sites, unit.select(sites, own, config, ratios[unit]), strict=True))
        return chosen


def _ratios(config: Pruning) -> Ratios:
    return {unit: unit.ratio(config) for unit in RATIO_UNITS}


def _rehearse(architecture: Architecture, config: Pruning, whole: Whole, score: Scorer) -> None:
    """Raise now, before anything is changed, what would be raised halfway: how much goes depends on no score."""
    sites = _Sites.of(whole.left(architecture), config)
    chosen = sites.select([torch.zeros(site.units) for site in sites.all], config, _ratios(config))
    for unit, parts in chosen.items():
        if parts and not any(gone for _, gone in parts):
            raise UsageError(unit.why_nothing(sites.of_unit[unit], config))
    for unit, parts in chosen.items():
        if parts:
            unit.check(architecture)
    if sites.all:
        score(architecture.model, sites.all)


def _remove_in_steps(
    architecture: Architecture, config: Pruning, score: Scorer, recover: Recover | None
) -> dict[str, int]:
    """Score, choose and cut in as many steps as the config says; returns site -> number of parts removed."""
    total = _Sites.of(architecture.layers, config).units()
    removed: dict[str, int] = {}
    for step in range(1, config.steps + 1):
        sites = _Sites.of(architecture.layers, config)
        ratios = _ratios(config)
        if config.steps > 1:
            # What is to go of the parts that are left, so that all in all the ratio of the original ones has gone.
            left, gone = sites.units(), config.gone_after(step)
            ratios = {
                unit: 1 - (1 - ratio * gone) * total[unit] / left[unit] if left[unit] else 0.0
                for unit, ratio in ratios.items()
            }
        for name, count in _remove(architecture.model, sites, config, score, ratios).items():
            removed[name] = removed.get(name, 0) + count
        if recover is not None and step < config.steps:
            logger.info("step %d/%d: %d parameters left", step, config.steps, architecture.model.num_parameters())
            recover(architecture.model)
    return removed


def _remove(model: PreTrainedModel, sites: _Sites, config: Pruning, score: Scorer, ratios: Ratios) -> dict[str, int]:
    """Score, choose and cut; returns site -> number of parts removed."""
    if not sites.all:
        return {}
    removed: dict[str, int] = {}
    for unit, chosen in sites.select(score(model, sites.all), config, ratios).items():
        for site, parts in chosen:
            if parts:
                removed[site.name] = len(parts)
                unit.remove(model, site, parts)
    return removed
