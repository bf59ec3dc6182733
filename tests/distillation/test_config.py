"""What can be asked for, and what is refused."""

import pytest

from effitrans import Distillation, UsageError
from effitrans.distillation.mapping import map_layers, uniform


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
        ({"temperatures": 3}, "did you mean 'temperature'"),
    ],
)
def test_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Distillation.parse(values)


def test_a_config_survives_its_own_dump():
    config = Distillation(objective={"feature": 0.5}, layer_mapping={0: 0, 2: 4}, alpha=0.7)
    assert Distillation(**config.model_dump()) == config
    assert Distillation.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (3, 6, {0: 0, 1: 2, 2: 4, 3: 6}),
        (4, 4, {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}),
        (1, 12, {0: 0, 1: 12}),
        (2, 1, {0: 0, 1: 0, 2: 1}),
    ],
)
def test_uniform_mapping(student, teacher, expected):
    assert uniform(student, teacher) == expected


def test_explicit_mapping():
    assert map_layers({1: 3}, 2, 4) == {1: 3}
    with pytest.raises(UsageError, match=r"student has hidden states 0 \(embeddings\) to 2, received 3"):
        map_layers({3: 3}, 2, 4)
    with pytest.raises(UsageError, match=r"teacher has hidden states 0 \(embeddings\) to 4, received 5"):
        map_layers({2: 5}, 2, 4)
