"""Settings without effect are refused by the configs themselves."""

import pytest

from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.pruning import HeadPruning, L0Pruning, Pruning, Search, Sparsity
from effitrans.recipes.steps import PruneStep

IDLE = [
    (Pruning, {"heads": 0.5}, {"schedule": "cubic", "calibration_examples": 9, "batch_size": 9, "multiple_of": 4}),
    (Pruning, {"ffn": 0.5}, {"min_heads": 2, "grouped_queries": "queries", "layer_choice": "importance"}),
    (Pruning, {"hidden": 0.5}, {"scope": "global", "min_heads": 2}),
    (Pruning, {"keep_layers": 2}, {"scope": "global", "steps": 2, "multiple_of": 4, "method": "taylor"}),
    (Pruning, {"keep_layers": [0, 1]}, {"layer_choice": "importance", "batch_size": 9}),
    (Pruning, {"heads": 0.5, "method": "taylor", "keep_layers": "0-1"}, {"layer_choice": "importance"}),
    (PruneStep, {"heads": 0.5}, {"learning_rate": 1e-3}),
    (PruneStep, {"heads": 0.5, "steps": 2}, {"learning_rate": 1e-3}),
    (HeadPruning, {"ratio": 0.5}, {"calibration_examples": 9}),
    (Search, {"parameters": 0.5}, {"batch": 8, "length": 64, "tolerance": 0.1, "repeats": 9}),
    (Search, {"memory": 0.5}, {"repeats": 9}),
    (L0Pruning, {"heads": 0.5}, {"multiple_of": 4}),
    (L0Pruning, {"ratio": 0.5, "max_steps": 5}, {"epochs": 3.0}),
    (Sparsity, {"sparsity": 0.5}, {"calibration_examples": 9, "batch_size": 9}),
    (Sparsity, {"pattern": "2:4"}, {"scope": "global"}),
]
WORKING = [
    (Pruning, {"heads": 0.5, "method": "taylor", "steps": 3, "schedule": "cubic", "scope": "global", "min_heads": 2}),
    (Pruning, {"keep_layers": 2, "layer_choice": "importance", "method": "taylor", "batch_size": 9}),
    (Pruning, {"keep_attention_layers": 2, "method": "taylor", "calibration_examples": 9}),
    (PruneStep, {"heads": 0.5, "steps": 2, "recover": 1.0, "learning_rate": 1e-3}),
    (Search, {"min_quality": 0.9, "batch": 8, "length": 64, "tolerance": 0.1, "repeats": 9}),
    (Search, {"memory": 0.5, "batch": 8, "length": 64, "tolerance": 0.1}),
    (Sparsity, {"sparsity": 0.5, "method": "wanda", "batch_size": 9}),
    (Pruning, {"heads": 0.5, "seed": 3}),
]


@pytest.mark.parametrize(
    ("kind", "values", "name", "value"),
    [(kind, values, name, value) for kind, values, idle in IDLE for name, value in idle.items()],
    ids=lambda part: part.__name__ if isinstance(part, type) else str(part),
)
def test_a_setting_without_effect_is_refused(kind: type[Config], values: dict, name: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"{name}=.* has no effect .*: leave it out"):
        kind.parse({**values, name: value})
    kind.parse({**values, name: kind.model_fields[name].default})


@pytest.mark.parametrize(("kind", "values"), WORKING, ids=str)
def test_a_setting_with_effect_is_taken(kind: type[Config], values: dict) -> None:
    assert kind.parse(values).model_dump(include=values.keys()).keys() == values.keys()
