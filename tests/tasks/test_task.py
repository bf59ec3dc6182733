"""The task definition: built-ins, what is refused, the fingerprint."""

import json
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from effitrans.errors import UsageError
from effitrans.tasks import KINDS, Task, builtin_tasks, load_task, metrics_of
from effitrans.tasks.task import BUILTIN

VALID = {
    "name": "mine",
    "kind": "sequence-classification",
    "data": {"train": "train.jsonl"},
    "inputs": "sentence",
    "target": "label",
}


@pytest.mark.parametrize("name", builtin_tasks())
def test_built_in_tasks_load_and_survive_a_round_trip(name):
    task = load_task(name)
    assert task.name == name
    again = load_task(task.model_dump(mode="json"))
    assert again == task
    assert load_task(task) is task
    assert set(task.metrics) <= set(metrics_of(task.behaviour))


@pytest.mark.parametrize("name", builtin_tasks())
def test_built_in_data_is_there(name):
    task = load_task(name)
    if isinstance(task.data, dict) and not os.environ.get("EFFITRANS_DATA"):
        pytest.skip("EFFITRANS_DATA is not set, and the tests use no network")
    for split in ("validation", "test"):
        rows = task.rows(split)
        assert set(task.columns) <= set(rows.column_names)
        assert len(task.fingerprint(split)) == 64


def test_sst2_has_the_known_sizes():
    if not os.environ.get("EFFITRANS_DATA"):
        pytest.skip("EFFITRANS_DATA is not set, and the tests use no network")
    task = load_task("sst2")
    assert [len(task.rows(split)) for split in task.splits] == [6920, 872, 1821]
    assert task.label_names() == ("negative", "positive")


def test_metrics_default_to_those_of_the_kind():
    assert load_task(VALID).metrics == KINDS["sequence-classification"].default_metrics


MISTAKES = {
    "unknown-key": ({"metric": ["accuracy"]}, "did you mean 'metrics'"),
    "unknown-kind": ({"kind": "sequence-clasification"}, "did you mean 'sequence-classification'"),
    "unknown-metric": ({"metrics": ["acuracy"]}, "did you mean 'accuracy'"),
    "metric-of-another-kind": ({"metrics": ["bleu"]}, "unknown metric of a sequence-classification task 'bleu'"),
    "unknown-generator": ({"data": {"generator": "digit"}}, "did you mean 'digits'"),
    "unknown-generator-option": ({"data": {"generator": "listops", "max_len": 9}}, "did you mean 'max_length'"),
    "unknown-hub-key": ({"data": {"hub": "glue", "confg": "sst2"}}, "did you mean 'config'"),
    "data-of-no-kind": ({"data": "train.jsonl"}, "expected .*hub"),
    "no-data": ({"data": {}}, "expected a file for each split"),
    "no-target": ({"target": None}, "needs `target`"),
    "three-inputs": ({"inputs": ["a", "b", "c"]}, "1 or 2 `inputs`"),
    "no-inputs": ({"inputs": []}, "at least one column"),
    "repeated-label": ({"labels": ["a", "a"]}, "named twice"),
    "one-label": ({"labels": ["a"]}, "at least two"),
    "target-of-a-language-model": ({"kind": "causal-lm"}, "no `target`"),
    "labels-of-a-regression": ({"kind": "regression", "labels": ["a", "b"]}, "no classes"),
    "tokenizer-for-images": ({"kind": "image-classification", "tokenizer": {}}, None),
    "max-length-for-images": ({"kind": "image-classification", "max_length": 8}, "reads no text"),
    "unknown-option": ({"options": {"stride": 1}}, "unknown NoOptions key 'stride'"),
    "wrong-length": ({"max_length": 0}, "max_length"),
    "bytes-for-answers": (
        {"kind": "question-answering", "inputs": ["q", "c"], "tokenizer": {"method": "bytes"}},
        "knows positions",
    ),
    "unknown-tokenizer": ({"tokenizer": {"method": "wordpiece"}}, "bytes"),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused_with_a_remedy(changes, message):
    with pytest.raises(UsageError, match=message):
        load_task({**VALID, **changes})


def test_mistakes_in_python_are_value_errors():
    with pytest.raises(ValueError, match="unknown task kind"):
        Task(**{**VALID, "kind": "classification"})


def test_unknown_task_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'sst2'"):
        load_task("sst3")


def test_unusable_task_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_task(tmp_path / "nothing.yaml")
    for name, content, message in (
        ("broken.yaml", "name: [", "not valid YAML"),
        ("list.yaml", "- a\n", "holds no mapping"),
        ("short.yaml", "name: a\n", r"short\.yaml: .*kind: is required"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=message):
            load_task(str(tmp_path / name))


def test_unknown_split_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'validation'"):
        load_task("digits").rows("valid")


def test_impossible_limit_is_refused():
    with pytest.raises(UsageError, match="at least 1"):
        load_task("digits").rows("test", limit=0)


def test_numeric_labels_in_yaml_are_names(tmp_path):
    values = yaml.safe_load((BUILTIN / "digits.yaml").read_text())
    assert load_task({**values, "labels": list(range(10))}).label_names() == tuple(map(str, range(10)))


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
rows = st.lists(st.tuples(texts, st.integers(0, 3)), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(rows, rows)
def test_fingerprint_changes_if_and_only_if_the_content_does(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("fingerprint")

    def fingerprint(content, extra):
        file = folder / f"{abs(hash((tuple(content), extra)))}.jsonl"
        lines = [json.dumps({"unused": extra, "sentence": text, "label": label}) for text, label in content]
        file.write_text("\n".join(lines))
        return load_task({**VALID, "labels": ["0", "1", "2", "3"], "data": {"train": str(file)}}).fingerprint("train")

    assert (fingerprint(first, 0) == fingerprint(second, 0)) == (first == second)
    assert fingerprint(first, 0) == fingerprint(first, 1)


@pytest.mark.parametrize("value", [None, 3, ["sst2"], {"a"}], ids=str)
def test_what_is_no_task_is_refused(value):
    with pytest.raises(UsageError, match=f"task is a {type(value).__name__}: expected a built-in name"):
        load_task(value)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0", "~nobody-of-this-name/a"], ids=["long", "nul", "home"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(UsageError, match=r"path|does not exist"):
        load_task(f"{name}.yaml")
    with pytest.raises(UsageError, match=r"path|does not exist"):
        load_task({**VALID, "data": {"train": f"{name}.csv"}}).rows("train")
