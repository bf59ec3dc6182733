"""The task kind and the metric of CONTRIBUTING.md, added as the page says: one file and one line in the registry."""

import importlib
import json
import re
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from transformers import BertConfig, BertForSequenceClassification

from effitrans.errors import UsageError
from effitrans.recipes import json_schema
from effitrans.tasks import KINDS, METRICS, Task, metric, metrics_of
from effitrans.tasks.metrics import Entry
from tests.cli.conftest import effitrans  # noqa: F401 - a fixture

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def _module(title, name, folder, monkeypatch):
    """The module of a section of the page, and the section."""
    section = PAGE.split(f"## {title}")[1].split("\n## ")[0]
    (source,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name), section


@pytest.fixture
def kind(tmp_path, monkeypatch):
    module, section = _module("Add a task kind", "rating", tmp_path, monkeypatch)
    assert "`Rating(),`" in section
    monkeypatch.setitem(KINDS, "rating", module.Rating())
    return KINDS["rating"]


@pytest.fixture
def added(tmp_path, monkeypatch):
    _, section = _module("Add a metric", "balanced", tmp_path, monkeypatch)
    assert (
        '"balanced_accuracy": Entry(f"{_HERE}.balanced:BalancedAccuracy", "Balanced accuracy", ("class",)),' in section
    )
    entry = Entry("balanced:BalancedAccuracy", "Balanced accuracy", ("class",))
    monkeypatch.setitem(METRICS, "balanced_accuracy", entry)
    return metric("balanced_accuracy")


def test_a_kind_has_its_metrics(kind):
    assert metrics_of(kind) == metrics_of(KINDS["regression"]) == ("pearson", "spearman", "mse")
    task = Task(name="stars", kind="rating", data={"train": "a.jsonl"}, inputs="text", target="stars")
    assert (task.behaviour, task.metrics) == (kind, ("mse", "spearman"))
    with pytest.raises(UsageError, match="did you mean 'rating'"):
        Task.parse({**task.model_dump(), "kind": "ratings"})


def test_the_command_line_takes_a_kind(kind, effitrans, tiny_tokenizer, tmp_path):  # noqa: F811
    config = BertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, num_labels=1, problem_type="regression",
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"text": "good film" if n % 2 else "bad", "stars": 1 + n % 5} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"name": "stars", "kind": "rating", "inputs": "text", "target": "stars", "metrics": ["mse"]}
    (tmp_path / "task.yaml").write_text(json.dumps({**task, "data": {"train": "rows.jsonl", "test": "rows.jsonl"}}))
    command = ("--task", tmp_path / "task.yaml")
    trained = effitrans(
        "train", "--model", tmp_path / "model", *command, "--max-steps", 1, "--output", tmp_path / "new"
    )
    assert trained.code == 0, trained.err
    scored = effitrans("eval", tmp_path / "new", *command, "--no-cost", "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["quality"]["mse"]["n"] == 16
    values = {
        "name": "r",
        "model": "minilm",
        "task": {**task, "data": {"train": "rows.jsonl"}},
        "steps": [{"train": {}}],
    }
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(values)


def test_a_metric_is_one_of_its_kinds_alone(added):
    names = [name for name, kind in KINDS.items() if "balanced_accuracy" in metrics_of(kind)]
    assert names == ["sequence-classification", "image-classification"]
    assert added.compute(predictions=[0, 0, 0, 1], references=[0, 0, 0, 0]) == {"balanced_accuracy": 0.75}
    assert added.compute(predictions=[0, 0, 0, 0], references=[0, 0, 0, 1]) == {"balanced_accuracy": 0.5}
    statistics = added.statistics(np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert added.values(statistics, np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0]])).tolist() == [0.75, 1.0]


def test_the_command_line_takes_a_metric(added, effitrans, tiny_teacher, tiny_task):  # noqa: F811
    tiny_task.write_text(tiny_task.read_text().replace("[accuracy]", "[balanced_accuracy]"))
    scored = effitrans("eval", tiny_teacher, "--task", tiny_task, "--no-cost", "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["quality"]["balanced_accuracy"]["n"] == 16
