"""What the passes may be given for data."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from effitrans.errors import UsageError
from effitrans.tasks import as_batches, data_loader, encode
from effitrans.tasks.padding import pad_batch
from tests.tasks.cases import make


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
    batches = list(as_batches(data, model=model, processor=processor, batch_size=4))
    assert len(batches) == len(reference) == 3
    for batch, expected in zip(batches, reference, strict=True):
        assert set(batch) == set(expected)
        assert all(torch.equal(batch[name], expected[name]) for name in batch)
        assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize("limit", [1, 4, 5, 11, 100])
def test_limit_counts_examples(made, limit):
    task, model, processor = made
    for data in _forms(task, model, processor).values():
        batches = list(as_batches(data, model=model, processor=processor, batch_size=4, limit=limit))
        assert sum(len(batch["input_ids"]) for batch in batches) == min(limit, 11)


def test_what_a_tokenizer_gives_is_a_batch(made):
    _, model, processor = made
    (batch,) = as_batches(processor(["a cat", "the dog ran"], padding=True, return_tensors="pt"), model=model)
    assert batch["input_ids"].shape[0] == 2


def test_task_in_all_its_forms(made, tmp_path):
    task, model, processor = made
    assert sum(len(b["input_ids"]) for b in as_batches(task, model=model, processor=processor, batch_size=5)) == 24
    drawn = next(as_batches(task, model=model, processor=processor, limit=6))
    assert len(set(drawn["labels"].tolist())) > 1


def test_task_uses_the_tokenizer_beside_the_weights(made, tmp_path):
    task, model, processor = made
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = type(model).from_pretrained(tmp_path / "model")
    expected = list(as_batches(task, model=loaded, processor=processor))
    found = list(as_batches(task, model=loaded))
    assert torch.equal(found[0]["input_ids"], expected[0]["input_ids"])
    with pytest.raises(UsageError, match="needs a tokenizer"):
        list(as_batches(task, model=model))


def test_inputs_the_model_does_not_take_are_left_out(made):
    _, model, _ = made
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "sentence_id": torch.zeros(2)}
    assert set(next(as_batches([batch], model=model))) == {"input_ids"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty"),
        (Dataset.from_dict({"input_ids": []}), "data is empty"),
        ([[1, 2]], "holds list objects"),
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
        list(as_batches(data, model=model, processor=processor))


def test_impossible_limit_is_refused(made):
    task, model, processor = made
    with pytest.raises(UsageError, match="limit 0"):
        list(as_batches(task, model=model, processor=processor, limit=0))
