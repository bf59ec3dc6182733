"""Several teachers: their weighted mean is what is learned."""

import pytest
import torch
import transformers

from effitrans import Distillation, UsageError, checkpoint, distill
from effitrans.cli.distill import _weighted
from tests.training.helpers import SIZES, VOCABULARY, assert_same_weights, bert, sentences, splits


@pytest.fixture(scope="module")
def teachers():
    models = [bert(seed=7, num_hidden_layers=3).eval(), bert(seed=8, hidden_size=48).eval()]
    with torch.no_grad():
        for model in models:
            model.classifier.weight.mul_(40)  # so that they are sure of different things
    return models


def _loss(teacher, **values):
    given = values.pop("given", None)
    config = Distillation(max_steps=1, batch_size=16, alpha=1, log_every=1, **values)
    return distill(bert(dropout=0.0), teacher, sentences(16), config, teachers=given).loss


@pytest.mark.parametrize("objective", ["response", "logit_mse", "dkd"])
def test_the_loss_is_the_weighted_mean(objective, teachers):
    first, second = (_loss(teacher, objective=objective) for teacher in teachers)
    assert abs(first - second) > 0.01
    both = _loss(teachers[0], objective=objective, teachers={"other": 3.0}, given={"other": teachers[1]})
    assert both == pytest.approx(0.25 * first + 0.75 * second, rel=1e-5)


def test_teachers_are_loaded_from_their_names(teachers, tmp_path):
    checkpoint.save(teachers[1], tmp_path / "other")
    name = str(tmp_path / "other")
    settings = {"max_steps": 3, "learning_rate": 1e-3, "teachers": {name: 2.0}}
    students = [bert(), bert(), bert()]
    distill(students[0], teachers[0], splits(), Distillation(**settings))
    distill(students[1], teachers[0], splits(), Distillation(**settings), teachers={name: teachers[1]})
    assert_same_weights(students[0], students[1])
    assert checkpoint.history(students[0])[-1]["config"]["teachers"] == {name: 2.0}
    distill(students[2], teachers[0], splits(), Distillation(**{**settings, "teachers": {}}))
    assert not torch.equal(students[2].classifier.weight, students[0].classifier.weight)


def test_every_teacher_is_asked_once_where_its_answers_are_cached(teachers, tmp_path):
    passes, losses = [0, 0], []
    for settings in ({}, {"cache": {"dtype": "fp32", "folder": str(tmp_path)}}):
        handles = [
            model.register_forward_pre_hook(lambda *_, i=i: passes.__setitem__(i, passes[i] + 1))
            for i, model in enumerate(teachers)
        ]
        passes[:] = [0, 0]
        config = Distillation(
            epochs=3, batch_size=16, learning_rate=1e-3, log_every=1, teachers={"other": 1.0}, **settings
        )
        result = distill(bert(dropout=0.0), teachers[0], sentences(48), config, teachers={"other": teachers[1]})
        losses.append([entry["loss"] for entry in result.history if "loss" in entry])
        for handle in handles:
            handle.remove()
    assert passes == [2 + 3, 2 + 3]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "response,feature", "teachers": {"other": 1}}, "'feature' follows the states of one teacher"),
        ({"objective": "relation", "teachers": {"other": 1}}, "or use response, logit_mse, dkd"),
        ({"teachers": {"other": 0}}, r"teachers\.other: Input should be greater than 0"),
        ({"teachers": {"other": 1}, "sequence_level": True}, "sequence_level takes the outputs of one"),
    ],
)
def test_refused_settings(values, message):
    with pytest.raises(UsageError, match=message):
        Distillation.parse(values)


def _larger_vocabulary():
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=VOCABULARY + 1, **SIZES))


def test_refused_teachers(teachers):
    three = bert(num_labels=3)
    for given, message in (
        ({"other": three}, "teacher other: the student's head has 2 labels and the teacher's 3"),
        ({"another": teachers[1]}, r"\(another\) are not those that the settings weigh \(other\)"),
        ({"other": _larger_vocabulary()}, "teacher other: student and teacher have vocabularies"),
        (None, "other"),
    ):
        with pytest.raises(UsageError, match=message):
            distill(bert(), teachers[0], splits(), Distillation(teachers={"other": 1.0}), teachers=given)
    encoders = [
        transformers.BertModel(transformers.BertConfig(vocab_size=VOCABULARY, **SIZES), add_pooling_layer=False)
        for _ in range(3)
    ]
    with pytest.raises(UsageError, match="spaces of their teachers' own"):
        distill(
            encoders[0], encoders[1], sentences(8).remove_columns("labels"),
            Distillation(teachers={"other": 1.0}), teachers={"other": encoders[2]},
        )  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), [("runs/a", ("runs/a", 1.0)), ("runs/a=0.5", ("runs/a", 0.5))])
def test_the_option_of_the_command_line(text, expected):
    assert _weighted(text) == expected
    with pytest.raises(UsageError, match="MODEL or MODEL=WEIGHT"):
        _weighted("runs/a=much")
