"""What can be asked for, and what is refused."""

import pytest

from effitrans import Distillation, UsageError
from effitrans.distillation import OBJECTIVES, TeacherCache
from effitrans.distillation.objectives.feature import FeatureConfig
from effitrans.distillation.objectives.relation import RelationConfig
from effitrans.distillation.objectives.response import SoftenedConfig
from effitrans.recipes.steps import VERBS


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("response", {"response": SoftenedConfig()}),
        ("response,feature", {"response": SoftenedConfig(), "feature": FeatureConfig()}),
        ("response, feature", {"response": SoftenedConfig(), "feature": FeatureConfig()}),
        (["feature"], {"feature": FeatureConfig()}),
        ({"response": 1, "feature": 0.25}, {"response": SoftenedConfig(), "feature": FeatureConfig(weight=0.25)}),
        ({"relation": {"weight": 1, "heads": 8}}, {"relation": RelationConfig(heads=8)}),
        ({"relation": RelationConfig(layer=2)}, {"relation": RelationConfig(layer=2)}),
    ],
)
def test_objectives(value, expected):
    assert Distillation.parse({"objective": value}).objective == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "responses"}, "did you mean 'response'"),
        ({"objective": ""}, "expected at least one of response"),
        ({"objective": "response,response"}, "twice"),
        ({"objective": {"response": 0}}, "response: weight: Input should be greater than 0"),
        ({"objective": {"response": "much"}}, "response: expected a weight or a mapping"),
        ({"objective": {"response": True}}, "response: expected a weight or a mapping"),
        ({"objective": {"response": FeatureConfig()}}, "response: expected a weight or a mapping"),
        ({"alpha": 1.5}, "alpha"),
        ({"objective": {"response": {"temperature": 0}}}, "response: temperature"),
        ({"objective": {"feature": {"layer_mapping": "uniformly"}}}, "did you mean 'uniform'"),
        ({"objective": {"feature": {"layer_mapping": {}}}}, "empty"),
        ({"objective": {"attention": {"layer_mapping": "dynamic"}}}, "Valid: last, skip, uniform"),
        ({"objective": {"relation": {"relations": []}}}, "relations"),
        ({"objective": {"response": {"layer_mapping": "last"}}}, "unknown SoftenedConfig key 'layer_mapping'"),
        ({"objective": {"feature": {"temperature": 3}}}, "unknown FeatureConfig key 'temperature'"),
        ({"alpha_end": 0.5}, "give alpha"),
        ({"objective": {"response": {"temperatures": 3}}}, "did you mean 'temperature'"),
        ({"sequence_level": {"beams": 5}}, "sequence_level: unknown SequenceLevel key 'beams'.*num_beams"),
    ],
)
def test_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Distillation.parse(values)


@pytest.mark.parametrize(
    ("values", "new"),
    [
        ({"temperature": 1.0}, "objective: {response: {temperature: 1.0}}"),
        (
            {"objective": {"response": 1, "feature": 0.1}, "layer_mapping": "skip"},
            'objective: {response: 1, feature: {weight: 0.1, layer_mapping: "skip"}}',
        ),
        ({"objective": "relation", "relation_heads": 4}, "objective: {relation: {heads: 4}}"),
        ({"objective": "dkd", "dkd_weight": 2}, "objective: {dkd: {non_target_weight: 2}}"),
        ({"objective": "embedding,rkd"}, "objective: {sentence_embedding: 1.0, rkd: 1.0}"),
        ({"cache": True, "cache_hidden_states": True, "cache_top_k": 8}, "cache: {top_k: 8}"),
        ({"cache": True, "cache_hidden_states": True}, "cache: true"),
        ({"control": True}, "no_teacher_baseline: true"),
        ({"sequence_level": True, "sequence_beams": 5}, "sequence_level: {num_beams: 5}"),
        ({"augment": 20, "crops": 8}, "augmentation: {crops: 8, word_replacement: {copies: 20}}"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_the_former_form_is_answered_with_the_new_one(values, new):
    with pytest.raises(UsageError) as refused:
        Distillation.parse(values)
    assert str(refused.value).endswith(f": write {new}")


@pytest.mark.parametrize("verb", ["linearize", "distill"])
def test_the_former_form_of_a_recipe(verb):
    values = {"cache": True, "cache_dtype": "fp32", "objective": "feature", "layer_mapping": "last"}
    with pytest.raises(
        UsageError, match=r'write objective: {feature: {layer_mapping: "last"}}, cache: {dtype: "fp32"}'
    ):
        VERBS[verb].parse(values, "step 1")
    with pytest.raises(UsageError, match=r"write transfer: {epochs: 2}"):
        VERBS["linearize"].parse({"transfer_epochs": 2, "window": 16}, "step 1")


def test_parts_may_be_switched():
    assert Distillation(cache=True, sequence_level=True) == Distillation(cache=TeacherCache(), sequence_level={})
    assert Distillation(cache=False, sequence_level=False) == Distillation()


def test_a_config_survives_its_own_dump():
    config = Distillation(
        objective={"feature": {"weight": 0.5, "layer_mapping": {0: 0, 2: 4}}},
        alpha=0.7,
        cache=True,
        augmentation=None,
    )
    assert Distillation(**config.model_dump()) == config
    assert Distillation.parse(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_that_follow_layers_take_a_mapping(name):
    takes_it = "layer_mapping" in OBJECTIVES[name].config_class.model_fields
    assert takes_it == (name in ("feature", "cosine", "pkd", "feed_forward", "attention"))
    if takes_it:
        config = Distillation(objective={name: {"layer_mapping": "last"}})
        assert config.objective[name].layer_mapping == "last"
