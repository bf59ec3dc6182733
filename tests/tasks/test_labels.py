"""Class names and ids."""

import pytest

from effitrans.errors import UsageError
from effitrans.tasks import encode, load_task
from effitrans.tasks.labels import LabelIds, names_of
from tests.tasks.cases import CASES, make_model


@pytest.mark.parametrize(
    ("names", "value", "expected"),
    [
        (("negative", "positive"), "positive", 1),
        (("negative", "positive"), 1, 1),
        (("negative", "positive"), 1.0, 1),
        (("False", "True"), True, 1),
        (("1", "2", "3"), 1, 0),
        (("1", "2", "3"), "3", 2),
        (("-1", "1"), -1, 0),
    ],
)
def test_values_become_ids(names, value, expected):
    assert LabelIds(names)(value, "row 1") == expected


@pytest.mark.parametrize(
    ("names", "value"),
    [(("a", "b"), "c"), (("a", "b"), 2), (("a", "b"), -1), (("1", "2"), 0), (("a", "b"), 0.5), (("a", "b"), None)],
)
def test_values_outside_the_labels_are_refused(names, value):
    with pytest.raises(UsageError, match=r"row 7 has the target .* none of the 2 labels"):
        LabelIds(names)(value, "row 7")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([0, 2], ("0", "2")),
        ([3, 1, 2], ("1", "2", "3")),
        ([10, 9], ("9", "10")),
        ([[0, -100], [1, None]], ("0", "1")),
        ([True, False], ("False", "True")),
        ([["O", "B"], [], ["O"]], ("B", "O")),
        ([0.0, 1.0], ("0", "1")),
    ],
)
def test_names_are_read_off_the_data(values, expected):
    from datasets import Dataset

    assert names_of(Dataset.from_dict({"x": values}), "x", "here") == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.5], "whole numbers"),
        ([-1, 1], "whole numbers"),
        (["a", "a"], "two classes"),
        ([str(n) for n in range(2000)], "too many"),
    ],
)
def test_values_that_are_no_classes_are_refused(values, message):
    from datasets import Dataset

    with pytest.raises(UsageError, match=message):
        names_of(Dataset.from_dict({"x": values}), "x", "here")


def test_unknown_value_in_another_split_names_its_row(tmp_path, tiny_tokenizer):
    (tmp_path / "train.jsonl").write_text('{"s": "good", "y": "yes"}\n{"s": "bad", "y": "no"}\n')
    (tmp_path / "test.jsonl").write_text('{"s": "good", "y": "yes"}\n{"s": "bad", "y": "maybe"}\n')
    task = load_task(
        {
            "name": "t", "kind": "sequence-classification", "inputs": "s", "target": "y",
            "data": {"train": "train.jsonl", "test": "test.jsonl"},
        },
        tmp_path,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"row 2 of task 't' has the target 'maybe'.*no, yes"):
        encode(task, "test", tiny_tokenizer)


@pytest.mark.parametrize("kind", ["sequence-classification", "image-classification", "regression"])
def test_head_that_does_not_fit_is_refused(kind, tmp_path, tiny_tokenizer):
    task = CASES[kind].task(tmp_path)
    processor = None if kind == "image-classification" else tiny_tokenizer
    model = make_model("vit" if processor is None else "bert", task, processor)
    model.config.num_labels = 5
    with pytest.raises(UsageError, match=r"head has 5 (labels|outputs)"):
        encode(task, "test", processor, model)


@pytest.mark.parametrize("kind", ["sequence-classification", "image-classification", "regression"])
def test_head_of_another_problem_type_is_refused(kind, tmp_path, tiny_tokenizer):
    task = CASES[kind].task(tmp_path)
    processor = None if kind == "image-classification" else tiny_tokenizer
    model = make_model("vit" if processor is None else "bert", task, processor)
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(UsageError, match="problem_type multi_label_classification, and task"):
        encode(task, "test", processor, model)


def test_labels_in_another_order_are_refused(tmp_path, tiny_tokenizer):
    task = CASES["sequence-classification"].task(tmp_path)
    model = make_model("bert", task, tiny_tokenizer)
    model.config.id2label = {0: "GOOD", 1: "BAD", 2: "NEUTRAL"}
    with pytest.raises(UsageError, match="another order"):
        encode(task, "test", tiny_tokenizer, model)
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert len(encode(task, "test", tiny_tokenizer, model)) == 11
