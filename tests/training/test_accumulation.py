"""Accumulated batches give the gradient of one large batch, whatever a model's own loss is a mean over."""

from collections.abc import Callable

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel

from effitrans import Training, train
from effitrans.training.callbacks import Epochs
from effitrans.training.trainer import count_items
from tests.training.helpers import SIZES, VOCABULARY, bert, sentences


def _rows(labels: Callable[[list[int], int], object], count: int = 16) -> Dataset:
    rows = sentences(count, seed=3)
    return Dataset.from_dict(
        {"input_ids": rows["input_ids"], "labels": [labels(ids, i) for i, ids in enumerate(rows["input_ids"])]}
    )


def _some(ids: list[int], i: int) -> list[int]:
    """Token labels that leave out more in some rows than in others."""
    return [token % 3 if (token + i) % (2 + i % 3) else -100 for token in ids]


def _gpt2() -> PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=32,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def _t5() -> PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _tagger() -> PreTrainedModel:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZES
    )
    return transformers.BertForTokenClassification(config)


def _vit() -> PreTrainedModel:
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SIZES)
    return transformers.ViTForImageClassification(config)


def _base() -> PreTrainedModel:
    config = transformers.AutoConfig.for_model(
        "effitrans", form="decoder", vocab_size=VOCABULARY, hidden_dropout=0.0, attention_dropout=0.0, **SIZES
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def _images() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(16, 1, 8, 8, generator=generator)
    return Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [i % 3 for i in range(16)]})


CASES = {
    "bert-classes": (lambda: bert(dropout=0.0), lambda: _rows(lambda ids, i: i % 2)),
    "bert-regression": (
        lambda: bert(dropout=0.0, num_labels=1, problem_type="regression"),
        lambda: _rows(lambda ids, i: ids[0] / 10),
    ),
    "bert-tokens": (_tagger, lambda: _rows(_some)),
    "gpt2-causal": (_gpt2, lambda: _rows(lambda ids, i: ids)),
    "t5-seq2seq": (_t5, lambda: _rows(lambda ids, i: ids[: 1 + i % 5])),
    "vit-images": (_vit, _images),
    "base-causal": (_base, lambda: _rows(lambda ids, i: ids)),
}


def _gradients(build, rows, monkeypatch, **settings) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients before the first optimizer step, and the loss logged after it."""
    found = {}

    def keep(self, args, state, control, model=None, **kwargs):
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(Epochs, "on_pre_optimizer_step", keep)
    torch.manual_seed(0)
    result = train(build(), rows, Training(max_steps=1, max_grad_norm=0, log_every=1, **settings))
    return found, result.loss


@pytest.mark.parametrize("case", CASES)
def test_accumulation_equals_a_large_batch(case, monkeypatch):
    build, make_rows = CASES[case]
    rows = make_rows()
    large, large_loss = _gradients(build, rows, monkeypatch, batch_size=16)
    small, small_loss = _gradients(build, rows, monkeypatch, batch_size=4, gradient_accumulation=4)
    assert large.keys() == small.keys()
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-3, atol=1e-6, msg=lambda text, n=name: n + text)
    assert small_loss == pytest.approx(large_loss, rel=1e-4)


def test_an_incomplete_accumulation_at_the_end_of_an_epoch_weighs_by_its_items(monkeypatch):
    rows = _rows(lambda ids, i: i % 2, count=6)
    build = CASES["bert-classes"][0]
    large, _ = _gradients(build, rows, monkeypatch, batch_size=6)
    small, _ = _gradients(build, rows, monkeypatch, batch_size=4, gradient_accumulation=4)
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-3, atol=1e-6)


def test_a_batch_without_a_label_is_no_nan():
    rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8]] * 2, "labels": [[-100, -100], [1, 1]] * 2})
    result = train(_tagger(), rows, Training(max_steps=4, batch_size=1, log_every=1, group_by_length=False))
    losses = [entry["loss"] for entry in result.history]
    assert min(losses) == 0.0
    assert max(losses) > 0.5


def test_count_items():
    labels = torch.tensor([[1, -100, 2], [3, 4, -100]])
    assert count_items({"input_ids": labels, "labels": labels}, shifted=False) == 4
    assert count_items({"input_ids": labels, "labels": labels}, shifted=True) == 2
    assert count_items({"input_ids": labels, "start_positions": labels[:, 0]}, shifted=False) == 2
