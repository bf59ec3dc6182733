"""Drawing calibration batches, from every form of data."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from effitrans.errors import UsageError
from effitrans.tasks import KINDS, calibration_batches, data_loader, encode
from effitrans.tasks.padding import pad_batch
from tests.tasks.cases import CASES, make


def drawn(data, model, processor=None, *, limit=None, batch_size=32, seed=None, **more):
    more = {"limit": limit, "batch_size": batch_size, "seed": seed, **more}
    return list(calibration_batches(data, model, processor, **more))


@pytest.fixture
def made(tmp_path):
    return make("sequence-classification", "bert", tmp_path)


def _forms(task, model, processor):
    encoded = encode(task, "test", processor, model)
    loader = data_loader(task, "test", processor, batch_size=4, model=model)
    return {
        "loader": loader,
        "list of batches": list(loader),
        "generator of batches": iter(list(loader)),
        "encoded data set": encoded,
        "torch data set": encoded.with_format("torch"),
        "list of examples": list(encoded),
        "examples in a loader": DataLoader(list(encoded), batch_size=4, collate_fn=partial(pad_batch, pad_token_id=0)),
        "examples with texts": [{**row, "text": "hello", "nothing": None} for row in encoded],
        "stream": encoded.to_iterable_dataset(),
        "splits": {"test": [], "train": encoded},
        "one label each": [
            {k: v for k, v in row.items() if k != "labels"} | {"label": row["labels"]} for row in encoded
        ],
    }


FORMS = (
    "loader",
    "list of batches",
    "generator of batches",
    "encoded data set",
    "torch data set",
    "list of examples",
    "examples in a loader",
    "examples with texts",
    "stream",
    "splits",
    "one label each",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_batches(made, form):
    task, model, processor = made
    reference = list(data_loader(task, "test", processor, batch_size=4, model=model))
    data = _forms(task, model, processor)[form]
    batches = drawn(data, model, processor, batch_size=4)
    assert len(batches) == len(reference) == 3
    for batch, expected in zip(batches, reference, strict=True):
        assert set(batch) == set(expected)
        assert all(torch.equal(batch[name], expected[name]) for name in batch)
        assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize("limit", [1, 4, 5, 11, 100])
def test_limit_counts_examples(made, limit):
    task, model, processor = made
    for data in _forms(task, model, processor).values():
        batches = drawn(data, model, processor, batch_size=4, limit=limit)
        assert sum(len(batch["input_ids"]) for batch in batches) == min(limit, 11)


def test_what_a_tokenizer_gives_is_a_batch(made):
    _, model, processor = made
    (batch,) = drawn(processor(["a cat", "the dog ran"], padding=True, return_tensors="pt"), model)
    assert batch["input_ids"].shape[0] == 2


def test_task_in_all_its_forms(made, tmp_path):
    task, model, processor = made
    for given in (task, task.model_dump() | {"kind": task.kind}):
        assert sum(len(b["input_ids"]) for b in drawn(given, model, processor, batch_size=5)) == 24
        (batch,) = drawn(given, model, processor, limit=6, seed=0)
        assert len(set(batch["labels"].tolist())) > 1


def test_task_uses_the_tokenizer_beside_the_weights(made, tmp_path):
    task, model, processor = made
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    expected = drawn(task, loaded, processor)
    found = drawn(task, loaded)
    assert torch.equal(found[0]["input_ids"], expected[0]["input_ids"])
    with pytest.raises(UsageError, match="needs a tokenizer"):
        drawn(task, model)


def test_inputs_the_model_does_not_take_are_left_out(made):
    _, model, _ = made
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "sentence_id": torch.zeros(2)}
    assert set(drawn([batch], model)[0]) == {"input_ids"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty"),
        (Dataset.from_dict({"input_ids": []}), "data is empty"),
        ([[1, 2]], "holds list objects"),
        (["a cat", 3], "texts and a int"),
        ({}, "no splits"),
        ({"train": [], "test": [{"input_ids": [1]}]}, "data is empty"),
        ([{"inputs_embeds": torch.full((2, 32), torch.nan)}], "inputs_embeds holds NaN"),
        (3, "data is a int"),
        ({"input_ids": [1]}, "data is a dict"),
        ([{"text": "hello"}], "examples that hold one of input_ids"),
        ([{"input_ids": [1]}, {"attention_mask": [1]}], "examples of a batch do not fit together"),
        ([{"input_ids": [1]}, {"input_ids": [[1, 2]]}], "examples of a batch do not fit together"),
        ("sst3", "did you mean 'sst2'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_other_data_is_refused(made, data, message):
    _, model, processor = made
    with pytest.raises(UsageError, match=message):
        drawn(data, model, processor)


def test_impossible_limit_is_refused(made):
    task, model, processor = made
    with pytest.raises(UsageError, match="limit 0"):
        drawn(task, model, processor, limit=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [None, 3])
def test_drawing_a_few_is_the_beginning_of_drawing_all(kind, seed, tmp_path):
    task, model, processor = make(kind, CASES[kind].models[0], tmp_path)
    few = drawn(task, model, processor, limit=5, batch_size=3, seed=seed)
    everything = drawn(task, model, processor, batch_size=3, seed=seed)
    for name, tensor in few[0].items():
        assert torch.equal(tensor, everything[0][name]), name
    assert len(few) == 2


@pytest.mark.parametrize("form", ["encoded data set", "list of examples", "splits"])
def test_the_seed_draws(made, form):
    task, model, processor = made
    data = _forms(task, model, processor)[form]
    first, again, other = (drawn(data, model, limit=4, seed=seed)[0]["input_ids"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_without_a_train_split_the_first_is_drawn_from(made):
    task, model, processor = made
    rows = list(encode(task, "test", processor, model))
    for name in ("train", "test"):
        (batch,) = drawn({"validation" if name == "test" else "test": rows[:2], name: rows[2:5]}, model)
        assert len(batch["labels"]) == (3 if name == "train" else 2)


def test_texts_are_encoded_as_the_tokenizer_does(made):
    _, model, processor = made
    texts = ["a cat", "", "the dog " * 200]
    (batch,) = drawn(texts, model, processor)
    assert batch["attention_mask"].sum(-1).tolist() == [len(processor("a cat")["input_ids"]), 2, 64]
    with pytest.raises(UsageError, match="no tokenizer"):
        drawn(texts, model)


def test_labels_that_are_needed(made):
    _, model, processor = made
    with pytest.raises(UsageError, match="no labels that it takes"):
        drawn(["a cat"], model, processor, needs_labels=True)
    assert "labels" in drawn([{"input_ids": [1], "label": 1}], model, needs_labels=True)[0]


def test_a_stream_is_read_no_further_than_needed(made):
    _, model, _ = made
    stream = ({"input_ids": [number + 1]} for number in range(100))
    assert len(drawn(stream, model, limit=5, batch_size=4)) == 2
    assert next(stream)["input_ids"] == [9]
