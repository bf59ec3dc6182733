"""Which entries go into which batch, and how they are padded."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from effitrans.errors import UsageError
from effitrans.tasks import build_processor, collator, data_loader, encode, load_task
from effitrans.tasks.batching import plan_batches
from effitrans.tasks.encoding import pad_token_id
from effitrans.tasks.padding import pad_batch
from tests.tasks.cases import CASES, make, make_model

lengths = st.lists(st.integers(1, 50), max_size=300)


@given(lengths, st.integers(1, 9), st.booleans(), st.none() | st.integers(0, 5))
def test_every_entry_is_in_one_batch(lengths, batch_size, bucket, seed):
    batches = plan_batches(lengths, batch_size, bucket=bucket, shuffle_seed=seed)
    assert sorted(entry for batch in batches for entry in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert batches == plan_batches(lengths, batch_size, bucket=bucket, shuffle_seed=seed)


@given(lengths, st.integers(1, 9))
@example([1, 1, 2], 2)
def test_buckets_pad_no_more_than_the_order_of_the_data(lengths, batch_size):
    def padded(batches):
        return sum(max(lengths[entry] for entry in batch) * len(batch) for batch in batches)

    lengths = lengths[: len(lengths) // batch_size * batch_size]
    assert padded(plan_batches(lengths, batch_size, bucket=True)) <= padded(plan_batches(lengths, batch_size))


def test_order_without_buckets_or_seed_is_that_of_the_data():
    assert plan_batches([5, 1, 3], 2) == [[0, 1], [2]]


def test_shuffled_buckets_differ_by_seed_and_pad_little():
    lengths = np.random.default_rng(0).integers(1, 100, 2000).tolist()
    first, second = (plan_batches(lengths, 8, bucket=True, shuffle_seed=seed) for seed in (0, 1))
    assert first != second
    wasted = [1 - sum(lengths[e] for e in b) / (max(lengths[e] for e in b) * len(b)) for b in first]
    assert np.mean(wasted) < 0.05


sequences = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=5)


@given(sequences, st.none() | st.integers(1, 8), st.integers(0, 9))
def test_padding_keeps_what_was_there(rows, multiple, pad):
    features = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row, "length": 1} for row in rows]
    batch = pad_batch(features, pad, multiple)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    width = batch["input_ids"].shape[1]
    assert width >= max(map(len, rows))
    assert multiple is None or width % multiple == 0
    for number, row in enumerate(rows):
        assert batch["input_ids"][number].tolist() == row + [pad] * (width - len(row))
        assert batch["attention_mask"][number].sum() == len(row)
        assert batch["labels"][number].tolist() == row + [-100] * (width - len(row))


def test_padding_of_arrays_and_numbers():
    features = [{"pixel_values": torch.ones(1, 2, 2), "labels": 1}, {"pixel_values": torch.zeros(1, 2, 2), "labels": 0}]
    batch = pad_batch(features, 0)
    assert batch["pixel_values"].shape == (2, 1, 2, 2)
    assert batch["labels"].dtype == torch.int64
    assert pad_batch([{"labels": 1.5}, {"labels": 2.0}], 0)["labels"].dtype == torch.float32
    assert pad_batch([{"input_ids": []}, {"input_ids": [3]}], 9)["input_ids"].tolist() == [[9], [3]]


def test_loader_keeps_the_index_and_pads_to_the_longest(tmp_path):
    task, model, processor = make("sequence-classification", "bert", tmp_path)
    loader = data_loader(task, "test", processor, batch_size=4, model=model, bucket=True, pad_to_multiple_of=8)
    sizes = []
    for entries, batch in zip(loader.batch_sampler, loader, strict=True):
        assert [loader.dataset[entry]["index"] for entry in entries] == entries
        for entry, ids in zip(entries, batch["input_ids"], strict=True):
            expected = loader.dataset[entry]["input_ids"]
            assert ids[: len(expected)].tolist() == expected
        assert batch["input_ids"].shape[1] % 8 == 0
        sizes.append(batch["input_ids"].shape[1])
    assert sizes == sorted(sizes, reverse=True)


def test_impossible_batch_size_and_limit_are_refused(tmp_path):
    task, model, processor = make("sequence-classification", "bert", tmp_path)
    with pytest.raises(UsageError, match="batch_size 0"):
        data_loader(task, "test", processor, batch_size=0)
    with pytest.raises(UsageError, match="limit 0"):
        encode(task, "test", processor, model, limit=0)


def test_decoder_without_padding_token_pads_with_its_end_token(tmp_path):
    task = CASES["sequence-classification"].task(tmp_path)
    tokenizer = build_processor(task)
    tokenizer.pad_token = None
    model = make_model("gpt2", task, tokenizer)
    assert model.config.pad_token_id is None
    batch = next(iter(data_loader(task, "test", tokenizer, batch_size=11, model=model)))
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["input_ids"][padding] == tokenizer.eos_token_id).all()
    assert model.config.pad_token_id == tokenizer.eos_token_id
    assert torch.isfinite(model(**batch).loss)


def test_inputs_are_truncated_to_what_the_model_takes(tmp_path):
    task, model, processor = make("sequence-classification", "bert", tmp_path)
    long = " ".join(["cat"] * 500)
    (tmp_path / "long.jsonl").write_text(f'{{"sentence": "{long}", "label": "good"}}\n')
    values = {**task.model_dump(), "labels": list(task.label_names() or ())}
    task = load_task({**values, "data": {"test": str(tmp_path / "long.jsonl")}})
    assert list(encode(task, "test", processor, model)["length"]) == [64]
    shorter = load_task({**values, "max_length": 16, "data": {"test": str(tmp_path / "long.jsonl")}})
    assert list(encode(shorter, "test", processor, model)["length"]) == [16]
    longer = load_task({**values, "max_length": 100, "data": {"test": str(tmp_path / "long.jsonl")}})
    with pytest.raises(UsageError, match="max_length 100 and the model takes 64"):
        encode(longer, "test", processor, model)
    processor.model_max_length = 20
    assert list(encode(task, "test", processor, model)["length"]) == [20]


def test_roberta_loses_positions_to_its_padding_index(tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from effitrans.tasks.encoding import model_limit

    config = RobertaConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config)
    assert model_limit(model) == 32
    model(torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))


def test_another_models_tokenizer_is_refused(tmp_path):
    task, model, processor = make("sequence-classification", "bert", tmp_path)
    model.config.vocab_size = 20
    with pytest.raises(UsageError, match="knows 20 tokens: pass the tokenizer that belongs"):
        encode(task, "test", processor, model)


def test_text_without_tokenizer_is_refused(tmp_path):
    task = CASES["sequence-classification"].task(tmp_path)
    with pytest.raises(UsageError, match="needs a tokenizer"):
        encode(task, "test", None)


def test_text_column_of_another_type_is_refused(tmp_path, tiny_tokenizer):
    task = CASES["sequence-classification"].task(tmp_path)
    values = {**task.model_dump(), "inputs": "label", "target": "sentence"}
    (tmp_path / "numbers.jsonl").write_text('{"label": 3, "sentence": "a"}\n{"label": 4, "sentence": "b"}\n')
    task = load_task({**values, "data": {"train": str(tmp_path / "numbers.jsonl")}})
    with pytest.raises(UsageError, match=r"row 1 .* has 3 in 'label': expected a text"):
        encode(task, "train", tiny_tokenizer)


def test_models_without_token_types_get_none(tmp_path, tiny_tokenizer):
    task = CASES["sequence-classification"].task(tmp_path)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in encode(task, "test", tokenizer).column_names
    model = make_model("distilbert", task, tokenizer)
    batch = collator(task, tokenizer, model)([encode(task, "test", tokenizer, model)[0]])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    model(**batch)


def test_empty_texts_are_read(tmp_path):
    task, model, tokenizer = make("sequence-classification", "gpt2", tmp_path)
    (tmp_path / "empty.jsonl").write_text('{"sentence": "", "label": "good"}\n{"sentence": "a cat", "label": "bad"}\n')
    values = {**task.model_dump(), "labels": list(task.label_names() or ())}
    task = load_task({**values, "data": {"test": str(tmp_path / "empty.jsonl")}})
    tokenizer.backend_tokenizer.post_processor = None
    encoded = encode(task, "test", tokenizer, model)
    assert min(encoded["length"]) == 1
    assert torch.isfinite(model(**collator(task, tokenizer, model)(list(encoded))).loss)


@pytest.mark.parametrize(("size", "padding"), [(10, 7), (7, 2), (2, 0)])
def test_padding_is_a_token_that_the_model_has(size, padding):
    processor = SimpleNamespace(pad_token_id=7, eos_token_id=2)
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=size))
    assert pad_token_id(processor, model) == padding
