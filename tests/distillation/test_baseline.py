"""A student beside the same student without its teacher."""

import logging

import pytest

from effitrans import Distillation, Training, UsageError, checkpoint, distill, evaluate, make_student, train
from tests.training.helpers import assert_same_weights, bert, sentences, splits, weights

SETTINGS = {"max_steps": 12, "batch_size": 8, "learning_rate": 1e-3, "eval_every": 6}


@pytest.fixture(scope="module")
def teacher():
    """One that takes one class for the other."""
    model = bert(seed=7)
    rows = sentences(128, seed=2)
    wrong = rows.remove_columns("labels").add_column("labels", [1 - label for label in rows["labels"]])
    train(model, wrong, Training(epochs=6, batch_size=16, learning_rate=2e-3))
    return model


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_student_that_ends_worse_is_reported(alpha, teacher, tmp_path, caplog):
    student = make_student(teacher, "layers=1")
    before = bert(num_hidden_layers=1)
    before.load_state_dict(student.state_dict())
    data = splits(64, 32)
    with caplog.at_level(logging.WARNING, "effitrans"):
        config = Distillation(alpha=alpha, no_teacher_baseline=True, **SETTINGS)
        result = distill(student, teacher, data, config, output_dir=tmp_path / "run")
    expected = train(before, data, Training(**SETTINGS))
    told = checkpoint.history(student)[-1]["summary"]
    assert told["no_teacher_baseline"] == {"steps": expected.steps, "loss": expected.loss, "best": expected.best}
    assert ("warnings" in told) == (alpha == 1.0)
    assert ("worse than the same student without the teacher" in caplog.text) == (alpha == 1.0)
    if alpha == 0:
        assert_same_weights(student, before)
    again = make_student(teacher, "layers=1")
    same = distill(again, teacher, data, config, output_dir=tmp_path / "run", resume=True)
    assert weights(again).keys() == weights(student).keys()
    assert_same_weights(again, student)
    assert (same.best, checkpoint.history(again)[-1]["summary"]) == (result.best, told)


def test_the_baseline_trains_as_long_where_texts_are_added(tiny_teacher, tiny_task, tiny_tokenizer):
    teacher = checkpoint.load_model(tiny_teacher, "AutoModelForSequenceClassification")
    student = make_student(teacher, "layers=1")
    config = Distillation(epochs=1, batch_size=8, augmentation={"crops": 2}, no_teacher_baseline=True)
    result = distill(student, teacher, str(tiny_task), config, processor=tiny_tokenizer)
    assert checkpoint.history(student)[-1]["summary"]["no_teacher_baseline"]["steps"] == result.steps


def test_the_baseline_needs_labels_on_both_sides(teacher):
    data, message = splits(16, 8), "no_teacher_baseline trains the student by labels"
    for changed in (data["train"], {**data, "validation": data["validation"].remove_columns("labels")}):
        with pytest.raises(UsageError, match=message):
            distill(bert(), teacher, changed, Distillation(max_steps=1, alpha=1, no_teacher_baseline=True))


def test_warnings_of_passes_are_notes_of_the_record(tiny_teacher, tiny_task, tiny_tokenizer):
    model = checkpoint.load_model(tiny_teacher, "AutoModelForSequenceClassification")
    checkpoint.record(model, "distill", {}, warnings=["the student ends worse"])
    record = evaluate(model, str(tiny_task), processor=tiny_tokenizer, cost=None)
    assert record.notes == ("the student ends worse",)
