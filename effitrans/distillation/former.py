"""Settings as they were written before they were nested: refused, with the new form to copy."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from effitrans.distillation.objectives import OBJECTIVES
from effitrans.errors import UsageError

_MOVED = {
    "control": "no_teacher_baseline",
    "sequence_beams": "sequence_level.num_beams",
    "unlabeled": "augmentation.unlabeled",
    "crops": "augmentation.crops",
    "augment": "augmentation.word_replacement.copies",
    "augment_model": "augmentation.word_replacement.model",
    "augment_share": "augmentation.word_replacement.probability",
    "augment_candidates": "augmentation.word_replacement.candidates",
    "cache_dtype": "cache.dtype",
    "cache_top_k": "cache.top_k",
    "cache_folder": "cache.folder",
    "cache_hidden_states": "cache",  # what the objectives compare is stored, without being asked for
    "transfer_epochs": "transfer.epochs",
    "transfer_steps": "transfer.max_steps",
    "transfer_learning_rate": "transfer.learning_rate",
    "transfer_parameters": "transfer.parameters",
}
"""Former name -> place in the new form."""

_OF_OBJECTIVES = {
    "temperature": "temperature",
    "layer_mapping": "layer_mapping",
    "dkd_weight": "non_target_weight",
    "relations": "relations",
    "relation_heads": "heads",
    "relation_layer": "layer",
}
"""Former name -> name among the settings of the objectives that have it."""

_RENAMED = {"embedding": "sentence_embedding", "embeddings": "embedding_layer"}
"""Former name -> name of an objective."""

FORMER = (*_MOVED, *_OF_OBJECTIVES)


def refuse_former(values: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse settings of the former form.

    Args:
        values: the settings as they were given.
        known: names of the fields that there are.

    Raises:
        UsageError: shows what to write in place of them.
    """
    moved = [n for n, place in _MOVED.items() if n in values and n not in known and place.split(".")[0] in known]
    settings = [name for name in _OF_OBJECTIVES if name in values and name not in known]
    weights = _weights(values.get("objective", "response"))
    renamed = [name for name in _RENAMED if name in weights]
    if not (moved or settings or renamed):
        return
    new: dict[str, Any] = {}
    if settings or renamed:
        new["objective"] = _objective({_RENAMED.get(n, n): v for n, v in weights.items()}, values, settings)
    for name in moved:
        _put(new, _MOVED[name].split("."), values[name])
    received = [*moved, *settings, *(f"objective {name}" for name in renamed)]
    text = re.sub(r'"(\w+)":', r"\1:", json.dumps(new, default=str))
    raise UsageError(f"received {', '.join(received)}; names or places have changed: write {text[1:-1]}")


def _weights(objective: Any) -> dict[str, Any]:
    """Name -> weight or settings."""
    if isinstance(objective, Mapping):
        return {str(name): value for name, value in objective.items()}
    names = objective.split(",") if isinstance(objective, str) else objective if isinstance(objective, list) else []
    return {str(name).strip(): 1.0 for name in names}


def _objective(weights: dict[str, Any], values: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    """The objectives, with the former settings among their own."""
    for former in settings:
        name = _OF_OBJECTIVES[former]
        owners = [own for own, objective in OBJECTIVES.items() if name in objective.config_class.model_fields]
        for owner in [own for own in owners if own in weights] or owners[:1]:
            before = weights.get(owner, {})
            before = dict(before) if isinstance(before, Mapping) else {} if before == 1 else {"weight": before}
            weights[owner] = {**before, name: values[former]}
    return weights


def _put(target: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, name = path
    for parent in parents:
        if not isinstance(target.get(parent), dict):
            target[parent] = {}
        target = target[parent]
    if not isinstance(target.get(name), dict):
        target[name] = value
