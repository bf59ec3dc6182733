"""Predictions are kept, found again only where nothing changed, and made again where the entry is damaged."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from effitrans import evaluate, tasks
from effitrans.checkpoint import load_model, load_processor
from effitrans.evaluation.cache import cached
from effitrans.files import cache_directory
from effitrans.tasks import Predictions


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFITRANS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def predicted(monkeypatch) -> list[str]:
    """One entry each time a model really predicts."""
    calls = []
    real = tasks.predict

    def predict(model, *args, **options):
        calls.append(type(model).__name__)
        return real(model, *args, **options)

    monkeypatch.setattr(tasks, "predict", predict)
    return calls


def entries() -> list[Path]:
    return sorted(cache_directory("predictions").iterdir())


def score(model: Path, task: Path, **options):
    return evaluate(model, task, cost=None, **options).quality


def test_the_second_time_nothing_is_predicted(tiny_teacher, tiny_task, predicted):
    first = score(tiny_teacher, tiny_task)
    assert score(tiny_teacher, tiny_task) == first
    assert len(predicted) == 1
    assert score(tiny_teacher, tiny_task, cache=False) == first
    assert len(predicted) == 2


def copied(folder: Path, to: Path) -> Path:
    """The teacher saved elsewhere, byte for byte."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("what", ["weights", "config", "tokenizer", "data", "limit", "batch", "split", "threads"])
def test_a_change_is_never_a_hit(what, tiny_teacher, tiny_task, tmp_path, predicted, monkeypatch):
    model, options = copied(tiny_teacher, tmp_path / "model"), {}
    score(model, tiny_task)
    if what == "weights":
        changed = load_model(model, "AutoModelForSequenceClassification")
        with torch.no_grad():
            changed.classifier.bias[0] += 1e-3
        changed.save_pretrained(model)
    elif what == "config":
        values = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(values | {"layer_norm_eps": 1e-5}))
    elif what == "tokenizer":
        tokenizer = load_processor(model)
        tokenizer.model_max_length = 8
        tokenizer.save_pretrained(model)
    elif what == "data":
        file = tiny_task.parent / "test.jsonl"
        file.write_text(file.read_text().replace("film", "plot", 1).replace("good", "fine", 1))
    elif what == "threads":
        # What the harness pins is what it may use.
        monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    else:
        options = {"limit": {"limit": 12}, "batch": {"batch_size": 5}, "split": {"split": "validation"}}[what]
    score(model, tiny_task, **options)
    assert len(predicted) == 2
    assert len(entries()) == 2


def test_what_says_nothing_about_the_weights_changes_no_key(tiny_teacher, tiny_task, tmp_path, predicted):
    model = copied(tiny_teacher, tmp_path / "elsewhere")
    score(model, tiny_task)
    (model / "README.md").write_text("a model card")
    score(model, tiny_task)
    score(tiny_teacher, tiny_task)
    assert len(predicted) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_entry_is_made_again(damage, tiny_teacher, tiny_task, predicted, caplog):
    first = score(tiny_teacher, tiny_task)
    (entry,) = entries()
    content = bytearray(entry.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    entry.write_bytes(content[: {"cut": len(content) - 20, "flipped": len(content), "empty": 0}[damage]])
    with caplog.at_level(logging.WARNING, logger="effitrans"):
        assert score(tiny_teacher, tiny_task) == first
    assert "damaged" in caplog.text
    assert len(predicted) == 2
    assert score(tiny_teacher, tiny_task) == first
    assert len(predicted) == 2


def test_the_baseline_of_a_comparison_is_found(tiny_teacher, tiny_task, predicted):
    score(tiny_teacher, tiny_task)
    record = evaluate(tiny_teacher, tiny_task, baseline=tiny_teacher, cost=None)
    assert record.fidelity.agreement == 1.0
    assert len(predicted) == 1


def test_another_processor_is_not_looked_up(tiny_teacher, tiny_task, tiny_tokenizer, predicted):
    score(tiny_teacher, tiny_task)
    score(tiny_teacher, tiny_task, processor=tiny_tokenizer)
    assert len(predicted) == 2


KINDS = {
    "classes": Predictions([1, 0], [1, 1], scores=np.array([[0.25, 1.5], [2.0, -1e-30]], np.float32)),
    "numbers": Predictions([0.1, float(np.float32(0.3))], [1.0, 2.0], losses=np.array([0.5, 1e-300])),
    "texts": Predictions(["ein Hund", "Größe 🐕"], ["ein Hund", ""]),
    "tags": Predictions([["B-PER", "O"], []], [["B-PER", "O"], []]),
    "answers": Predictions(["a"], [("a", "an a")], weights=np.array([2.0])),
    "language model": Predictions(None, None, losses=np.ones(3), bytes=np.array([1, 2, 3])),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_predictions_comes_back_as_it_was(name):
    expected = KINDS[name]
    cached(name, lambda: expected)

    def fail():
        raise AssertionError("was not found")

    found = cached(name, fail)
    for field in dataclasses.fields(Predictions):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
        else:
            assert ours == theirs
            assert type(ours) is type(theirs)
