"""Predictions that no figure can be trusted with, and memory that runs out at one place only."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from effitrans.errors import UsageError
from effitrans.evaluation import Cost, shapes, worker
from effitrans.evaluation.generation import measure_generation
from effitrans.evaluation.latency import EvaluatedModel
from effitrans.evaluation.quality import check_predictions
from effitrans.evaluation.record import Generation
from effitrans.tasks import load_task
from effitrans.tasks.metrics import check_metrics
from effitrans.tasks.predictions import Predictions

FINE = Predictions(references=[0, 1, 0], predictions=[0, 1, 1], scores=np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.array([[0, 0], [0, math.nan], [0, 0]])}, "scores of 1 of 3 .* first at row 1"),
        ({"scores": np.array([[0, 0], [0, 0], [math.inf, 0]])}, "scores of 1 of 3 .* first at row 2"),
        ({"losses": np.array([math.nan, 1.0, math.nan])}, "losses of 2 of 3 .* first at row 0"),
        ({"predictions": [0.5, 0.1, math.nan]}, "predictions of 1 of 3 .* first at row 2"),
    ],
    ids=["nan-score", "infinite-score", "nan-loss", "nan-prediction"],
)
def test_predictions_that_are_no_numbers_are_refused_with_the_row(changes, message):
    check_predictions(FINE, "model")
    with pytest.raises(UsageError, match=message):
        check_predictions(replace(FINE, **changes), "model")


def test_no_predictions_are_refused():
    with pytest.raises(UsageError, match="holds no examples"):
        check_predictions(Predictions(references=[], predictions=[]), "model")


def classification(tmp_path, labels, metrics):
    """A task with so many rows of each label."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"a text,{label}\n" for label in labels))
    data = {"train": str(path), "test": str(path)}
    definition = {"name": "mood", "kind": "sequence-classification", "data": data, "inputs": "text", "target": "label"}
    return load_task({**definition, "metrics": metrics})


@pytest.mark.parametrize("name", ["f1", "precision", "recall"])
def test_a_binary_metric_of_three_labels_is_refused_beforehand(tmp_path, name):
    task = classification(tmp_path, ["bad", "good", "so-so"], ["accuracy", name])
    with pytest.raises(UsageError, match=rf"'{name}' of task 'mood'.*3 \(bad, good, so-so\): use f1_macro"):
        check_metrics(task)


@pytest.mark.parametrize("tags", [["NOUN", "VERB"], [0, 1], ["B", "O"], ["b-per", "O"]], ids=str)
def test_chunks_of_tags_that_mark_none_are_refused_beforehand(tmp_path, tags):
    (tmp_path / "train.jsonl").write_text(json.dumps({"words": ["a", "b"], "tags": tags}))
    data = {"name": "tags", "kind": "token-classification", "data": {"train": "train.jsonl"}, "inputs": "words"}
    with pytest.raises(UsageError, match=r"'entity_f1' of task 'tags' counts chunks of tags such as B-PER"):
        check_metrics(load_task({**data, "target": "tags"}, tmp_path))
    assert check_metrics(load_task({**data, "target": "tags", "labels": ["O", "B-X"]}, tmp_path))


def test_metrics_that_fit_are_built_in_their_order(tmp_path):
    task = classification(tmp_path, ["bad", "good"], ["f1", "accuracy"])
    assert [built.name for built in check_metrics(task)] == ["f1", "accuracy"]


def out_of_memory_at(length, forward):
    """A forward pass that runs out of memory on inputs of one length."""

    def limited(input_ids=None, **options):
        if input_ids is not None and input_ids.shape[1] == length:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")
        return forward(input_ids=input_ids, **options)

    return limited


def test_generation_that_runs_out_of_memory_leaves_the_other_contexts(tmp_path, tiny_tokenizer):
    (tmp_path / "rows.txt").write_text("good film bad plot the a very fine film not poor " * 8)
    rows = {"train": str(tmp_path / "rows.txt"), "test": str(tmp_path / "rows.txt")}
    task = load_task({"name": "lm", "kind": "causal-lm", "data": rows, "inputs": "text", "max_length": 16})
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32))
    model.forward = out_of_memory_at(9, model.forward)
    cost = Cost(batches=(1,), contexts=(8, 9, 10), new_tokens=2, min_repeats=2, min_seconds=0.0, warmup=1)
    subject = EvaluatedModel("tiny", model.eval(), tiny_tokenizer, None)
    found = list(measure_generation(subject, None, shapes.SplitBatches(task, "test"), cost))
    assert [row.context for row in found if isinstance(row, Generation)] == [8, 10]
    assert "generation at 1 x 9: not measured, out of memory" in found


def test_memory_that_cannot_be_measured_leaves_the_load_time(tiny_teacher):
    model = BertForSequenceClassification.from_pretrained(tiny_teacher).eval()
    model.forward = out_of_memory_at(4, model.forward)
    subject = EvaluatedModel("tiny", model, None, tiny_teacher)
    note, memory = worker._memory(subject, {"input_ids": torch.ones(1, 4, dtype=torch.long)}, 0.5, 100)
    assert note == "peak memory: not measured, out of memory"
    assert (memory.load_s, memory.peak_memory_bytes, memory.model_memory_bytes) == (0.5, None, None)
    model.forward = out_of_memory_at(5, model.forward)
    (memory,) = worker._memory(subject, {"input_ids": torch.ones(1, 3, dtype=torch.long)}, 0.5, 100)
    assert memory.peak_memory_bytes > memory.model_memory_bytes > 0
