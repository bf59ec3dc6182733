"""The batches that models are timed on."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaModel, T5Config, T5Model

from effitrans.evaluation import shapes
from effitrans.tasks import load_task


@pytest.fixture
def bert(tiny_teacher):
    return BertForSequenceClassification.from_pretrained(tiny_teacher).eval()


def test_data_batches_are_padded_to_their_own_longest(bert, tiny_task, tiny_tokenizer):
    examples = shapes.SplitBatches(load_task(tiny_task), "test")
    batches = examples.batches(bert, tiny_tokenizer, 4, most=10)
    assert len(batches) == 4
    assert all(batch["input_ids"].shape[0] == 4 for batch in batches)
    assert all(batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1] for batch in batches)
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    assert all("labels" not in batch for batch in batches)
    assert examples.batches(bert, tiny_tokenizer, 4, most=10) is batches


def test_fewer_batches_are_spread_over_the_split(bert, tiny_task, tiny_tokenizer):
    examples = shapes.SplitBatches(load_task(tiny_task), "test")
    everything = examples.batches(bert, tiny_tokenizer, 2, most=100)
    some = examples.batches(bert, tiny_tokenizer, 2, most=3)
    assert [b["input_ids"].tolist() for b in some] == [everything[i]["input_ids"].tolist() for i in (0, 4, 7)]


def test_a_batch_larger_than_the_split_does_not_exist(bert, tiny_task, tiny_tokenizer):
    assert shapes.SplitBatches(load_task(tiny_task), "test").batches(bert, tiny_tokenizer, 17, most=3) == []


def test_fixed_batches_hold_real_tokens_without_padding():
    batch = {
        "input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "token_type_ids": torch.ones(2, 3, dtype=torch.long),
    }
    made = shapes.fixed_batch([batch], 2, 4)
    assert made["input_ids"].tolist() == [[5, 6, 7, 8], [9, 5, 6, 7]]
    assert made["attention_mask"].tolist() == [[1] * 4] * 2
    assert made["token_type_ids"].tolist() == [[0] * 4] * 2


def test_fixed_batches_of_an_encoder_decoder_have_a_decoder_side():
    batch = {"input_ids": torch.tensor([[5, 6]]), "decoder_input_ids": torch.tensor([[0, 7, 8]])}
    made = shapes.fixed_batch([batch], 1, 4)
    assert made["decoder_input_ids"].tolist() == [[0, 7, 8, 0]]


def test_labels_stay_only_where_the_decoder_needs_them():
    t5 = T5Model(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9))
    t5.forward = lambda input_ids, labels=None, decoder_input_ids=None: None
    ids = torch.ones(1, 2, dtype=torch.long)
    assert set(shapes.inference_inputs({"input_ids": ids, "labels": ids}, t5)) == {"input_ids", "labels"}
    with_decoder = {"input_ids": ids, "labels": ids, "decoder_input_ids": ids}
    assert set(shapes.inference_inputs(with_decoder, t5)) == {"input_ids", "decoder_input_ids"}


def test_most_positions_knows_that_roberta_loses_some():
    small = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    roberta = RobertaModel(RobertaConfig(**small, vocab_size=9, max_position_embeddings=34, pad_token_id=1))
    assert shapes.most_positions(roberta) == 32
    roberta(input_ids=torch.full((1, 32), 5))
    bert = BertForSequenceClassification(BertConfig(**small, vocab_size=9, max_position_embeddings=34))
    assert shapes.most_positions(bert) == 34


def test_padding_is_no_token_of_the_throughput():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert shapes.real_tokens({"input_ids": mask, "attention_mask": mask}) == 5
    assert shapes.real_tokens({"pixel_values": torch.zeros(1, 1, 8, 8)}) is None
