"""What can be asked for, and what is refused."""

import pytest

from effitrans import Distillation, UsageError
from effitrans.distillation import OBJECTIVES


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("response", {"response": 1.0}),
        ("response,feature", {"response": 1.0, "feature": 1.0}),
        ("response, feature", {"response": 1.0, "feature": 1.0}),
        (["feature"], {"feature": 1.0}),
        ({"response": 1, "feature": 0.25}, {"response": 1.0, "feature": 0.25}),
    ],
)
def test_objectives(value, expected):
    assert Distillation.parse({"objective": value}).objective == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "responses"}, "did you mean 'response'"),
        ({"objective": ""}, "at least one objective"),
        ({"objective": "response,response"}, "twice"),
        ({"objective": {"response": 0}}, "positive number"),
        ({"objective": {"response": "much"}}, "positive number"),
        ({"alpha": 1.5}, "alpha"),
        ({"temperature": 0}, "temperature"),
        ({"objective": "feature", "layer_mapping": "uniformly"}, "did you mean 'uniform'"),
        ({"objective": "feature", "layer_mapping": {}}, "empty"),
        ({"layer_mapping": {1: 2}}, "for objective 'feature'"),
        ({"objective": "relation", "relations": []}, "relations"),
        ({"relation_heads": 4}, "relation_heads is for objective 'relation'"),
        ({"relations": ["value"], "objective": "attention"}, "relations is for objective 'relation'"),
        ({"dkd_weight": 1}, "dkd_weight is for objective 'dkd'"),
        ({"temperature": 3, "objective": "feature"}, "temperature is for objective 'response' or 'dkd'"),
        ({"alpha_end": 0.5}, "give alpha"),
        ({"temperatures": 3}, "did you mean 'temperature'"),
    ],
)
def test_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Distillation.parse(values)


def test_the_default_temperature_may_be_named():
    assert Distillation.parse({"temperature": 2, "objective": "feature"}).temperature == 2


def test_a_config_survives_its_own_dump():
    config = Distillation(objective={"feature": 0.5}, layer_mapping={0: 0, 2: 4}, alpha=0.7)
    assert Distillation(**config.model_dump()) == config
    assert Distillation.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("objective", [name for name, made in OBJECTIVES.items() if made.follows_layers])
def test_objectives_that_follow_layers_take_a_mapping(objective):
    assert Distillation(objective={objective: 1.0}, layer_mapping="last").layer_mapping == "last"
