"""Importance measured once and used for several prunings: `measure_importance` and `Scores`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.architectures import adapter
from effitrans.checkpoint.accepting import takes_models
from effitrans.config import as_config
from effitrans.errors import UsageError
from effitrans.pruning.calibration import Batches, criterion_batches
from effitrans.pruning.config import Importance
from effitrans.pruning.importance import IMPORTANCE
from effitrans.pruning.sites import PruningSite
from effitrans.pruning.units import PRUNED
from effitrans.pruning.units.base import Scorer


def measured(method: str, batches: Batches, seed: int = 0) -> Scorer:
    """A scorer that measures with a criterion.

    The scorer raises `UsageError` where a score is not finite.
    """
    criterion = IMPORTANCE[method]

    def score(model: PreTrainedModel, sites: Sequence[PruningSite]) -> list[Tensor]:
        options = {"seed": seed} if criterion.seeded else {}
        scores = criterion.score(model, sites, batches, **options)
        for site, values in zip(sites, scores, strict=True):
            if not values.isfinite().all():
                raise UsageError(
                    f"the {method} importance of {site.name} is not finite: the model's weights, or its loss on the "
                    "calibration data, hold NaN or infinity. Score it in float32, or train it anew"
                )
        return scores

    return score


@dataclass(frozen=True)
class Scores:
    """The importance of every unit of a model: heads, neurons, sublayers and layers.

    They belong to the model they were measured on: `prune_units` checks that the places and numbers of units agree, not
    that the weights do.
    """

    method: str
    """The criterion, a key of `IMPORTANCE`."""
    grouped_queries: Literal["groups", "queries"]
    """What a head is under grouped-query attention."""
    values: Mapping[str, Tensor]
    """"kind:site" -> float32 [units]: `"head:encoder.layer.0.attention.self"`."""

    def of(self, model: PreTrainedModel, sites: Sequence[PruningSite]) -> list[Tensor]:
        """The scores of some sites of the model; a `Scorer`.

        Raises:
            UsageError: the model has other places or numbers of units than the one that was measured.
        """
        for site in sites:
            found = self.values.get(_key(site))
            if found is None or found.numel() != site.units:
                units = "none" if found is None else str(found.numel())
                raise UsageError(
                    f"these scores were measured on another model: they have {units} and this "
                    f"{type(model).__name__} has {site.units} {site.kind}(s) in {site.name}. Measure them on this model"
                )
        return [self.values[_key(site)] for site in sites]

    def save(self, file: str | Path) -> None:
        """Write the scores to a safetensors file."""
        about = {"effitrans_scores": json.dumps({"method": self.method, "grouped_queries": self.grouped_queries})}
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        safetensors.torch.save_file(dict(self.values), temporary, metadata=about)
        temporary.replace(path)

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UsageError: no such file, or not a file of scores.
        """
        try:
            with safe_open(file, framework="pt") as opened:
                about = json.loads((opened.metadata() or {})["effitrans_scores"])
                values = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise UsageError(f"{file} holds no importance scores ({error}): expected what Scores.save wrote") from error
        return cls(values=values, **about)


@takes_models("model")
def measure_importance(
    model: PreTrainedModel, config: Importance | None = None, data: Any = None, *, processor: Any = None
) -> Scores:
    """Score every unit of a model in one pass over the calibration data.

    Args:
        model: a floating-point model of a family with an adapter. It is left as it is.
        config: the criterion and its calibration; default magnitude.
        data: as in `prune`.
        processor: as in `prune`.

    Returns:
        Scores for `prune_units(model, config, scores=...)`, for any ratio, scope or unit.

    Raises:
        UsageError: as `prune`: no adapter, no data for a criterion that needs them, scores that are not finite.

    >>> from transformers import BertConfig, BertModel
    >>> from effitrans.pruning import HeadPruning, measure_importance, prune_units
    >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64))
    >>> scores = measure_importance(model)
    >>> [prune_units(model, HeadPruning(ratio=r), scores=scores).num_parameters() for r in (0.25, 0.5)]
    [1190912, 1178240]
    """
    config = as_config(config, "measure_importance", Importance, 'Importance(method="taylor")', default=Importance())
    batches = criterion_batches(model, config, data, processor)
    layers = adapter(model).layers
    sites = [site for unit in PRUNED for site in unit.sites(layers, config)]
    scores = measured(config.method, batches, config.seed)(model, sites)
    values = {_key(site): score.float().contiguous() for site, score in zip(sites, scores, strict=True)}
    return Scores(config.method, config.grouped_queries, values)


def _key(site: PruningSite) -> str:
    return f"{site.kind}:{site.name}"
