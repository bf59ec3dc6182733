"""What the heads compute: pooling, losses, the forms they can be built with."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from effitrans.errors import UsageError
from effitrans.models import (
    EffitransForCausalLM,
    EffitransForImageClassification,
    EffitransForMaskedLM,
    EffitransForQuestionAnswering,
    EffitransForSeq2SeqLM,
    EffitransForSequenceClassification,
    EffitransForTokenClassification,
)
from effitrans.models.classification import pool

from .cases import build, text, tokens


def test_pooling():
    states = torch.arange(24.0).view(2, 4, 3)
    states[1, 3] = float("inf")
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert torch.equal(pool(states, mask, "encoder"), torch.stack((states[0, 2:].mean(0), states[1, :3].mean(0))))
    assert torch.equal(pool(states, mask, "decoder"), torch.stack((states[0, 3], states[1, 2])))
    assert torch.equal(pool(states[:1], None, "encoder"), states[:1].mean(1))
    assert torch.equal(pool(states[:1], None, "decoder"), states[:1, 3])
    assert torch.equal(pool(states, mask.bool(), "decoder"), pool(states, mask, "decoder"))
    assert torch.equal(pool(states, torch.zeros_like(mask), "encoder"), torch.zeros(2, 3))


def test_classification_loss():
    model = build(EffitransForSequenceClassification)
    labels = torch.tensor([0, 2, 1])
    outputs = model(**text(), labels=labels)
    torch.testing.assert_close(outputs.loss, cross_entropy(outputs.logits, labels))


@pytest.mark.parametrize("batch", [1, 3])
def test_regression(batch):
    model = build(EffitransForSequenceClassification, num_labels=1, problem_type="regression")
    inputs = {name: x[:batch] for name, x in text().items()}
    labels = torch.tensor([0.5, -1.0, 2.0])[:batch]
    outputs = model(**inputs, labels=labels)
    assert outputs.logits.shape == (batch, 1)
    torch.testing.assert_close(outputs.loss, ((outputs.logits[:, 0] - labels) ** 2).mean())


def test_several_labels():
    model = build(EffitransForSequenceClassification, problem_type="multi_label_classification")
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    outputs = model(**text(), labels=labels)
    probability = outputs.logits.sigmoid()
    expected = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()
    torch.testing.assert_close(outputs.loss, expected)


def test_token_classification_loss_skips_ignored_labels():
    model = build(EffitransForTokenClassification)
    labels = (text()["input_ids"] % 3).masked_fill(text()["attention_mask"] == 0, -100)
    outputs = model(**text(), labels=labels)
    real = labels != -100
    torch.testing.assert_close(outputs.loss, cross_entropy(outputs.logits[real], labels[real]))
    torch.testing.assert_close(
        model(**text(), labels=labels, num_items_in_batch=torch.tensor(20)).loss, outputs.loss * real.sum() / 20
    )


def test_question_answering_loss():
    model = build(EffitransForQuestionAnswering)
    start, end = torch.tensor([0, 2, 1]), torch.tensor([1, 99, 2])
    outputs = model(**text(), start_positions=start, end_positions=end)
    assert outputs.start_logits.shape == outputs.end_logits.shape == (3, 7)
    kept = torch.tensor([0, 2])
    expected = cross_entropy(outputs.start_logits, start) + cross_entropy(outputs.end_logits[kept], end[kept])
    torch.testing.assert_close(outputs.loss, expected / 2)


def test_language_model_losses():
    words = tokens(2, 6)
    masked = words.masked_fill(words % 2 == 0, -100)
    outputs = build(EffitransForMaskedLM)(input_ids=words, labels=masked)
    torch.testing.assert_close(outputs.loss, cross_entropy(outputs.logits.flatten(0, 1), masked.flatten()))

    outputs = build(EffitransForCausalLM, "decoder")(input_ids=words, labels=words)
    expected = cross_entropy(outputs.logits[:, :-1].flatten(0, 1), words[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected)


def test_seq2seq_loss_and_shifted_labels():
    model = build(EffitransForSeq2SeqLM, "encoder-decoder", bos_token_id=3)
    labels = torch.tensor([[5, 6, 7, -100], [8, 9, -100, -100]])
    shifted = torch.tensor([[3, 5, 6, 7], [3, 8, 9, 0]])
    assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), shifted)
    outputs = model(input_ids=tokens(2, 5), labels=labels)
    same = model(input_ids=tokens(2, 5), decoder_input_ids=shifted)
    torch.testing.assert_close(outputs.logits, same.logits)
    torch.testing.assert_close(outputs.loss, cross_entropy(outputs.logits.flatten(0, 1), labels.flatten()))
    assert outputs.past_key_values is None


@torch.no_grad()
def test_patches_are_read_row_by_row():
    options = {"image_size": 4, "num_channels": 2, "patch_size": 2}
    model = build(EffitransForImageClassification, **options)
    images = torch.rand(3, 2, 4, 4)
    embed = model.get_input_embeddings()
    corner = images[:, :, :2, 2:].flatten(1)  # the second patch: first row, second column
    torch.testing.assert_close(embed(images)[:, 1], embed.projection(corner))


@torch.no_grad()
def test_pixels_are_a_sequence():
    model = build(EffitransForImageClassification, image_size=8, max_position_embeddings=None)
    assert model.config.num_patches == model.config.max_position_embeddings == 64
    assert model.config.position == "learned"
    outputs = model(pixel_values=torch.rand(2, 1, 8, 8), output_hidden_states=True)
    assert outputs.hidden_states[0].shape == (2, 64, 32)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 8, 8), (2, 8, 8)])
def test_images_of_another_size_are_refused(shape):
    model = build(EffitransForImageClassification, image_size=8, max_position_embeddings=64)
    with pytest.raises(UsageError, match=r"expected \(batch, 1, 8, 8\): resize"):
        model(pixel_values=torch.rand(shape))


@pytest.mark.parametrize(
    ("model_class", "options", "message"),
    [
        (EffitransForMaskedLM, {"form": "decoder"}, "built from form 'encoder', the config says 'decoder'"),
        (EffitransForCausalLM, {"form": "encoder"}, "built from form 'decoder', the config says 'encoder'"),
        (EffitransForSeq2SeqLM, {"form": "decoder"}, "built from form 'encoder-decoder'"),
        (EffitransForSequenceClassification, {"form": "encoder-decoder"}, "form 'encoder' or 'decoder'"),
        (EffitransForImageClassification, {}, "reads images: set image_size"),
        (EffitransForMaskedLM, {"image_size": 4}, "predicts tokens: the config must not have an image_size"),
    ],
)
def test_forms_that_do_not_fit_the_head_are_refused(model_class, options, message):
    with pytest.raises(UsageError, match=message):
        build(model_class, **options)
