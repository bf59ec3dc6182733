"""A text gives the same result alone, padded on either side, and among others; decoders do not see the future."""

import pytest
import torch

from effitrans.models import (
    EffitransForCausalLM,
    EffitransForSeq2SeqLM,
    EffitransForSequenceClassification,
    EffitransForTokenClassification,
)

from .cases import ALL_POSITIONS, build, tokens

pytestmark = [
    pytest.mark.parametrize("position", ALL_POSITIONS),
    pytest.mark.parametrize("attention", ["eager", "sdpa"]),
]
LENGTHS = (5, 9, 1, 12)


def padded(texts: list[torch.Tensor], side: str, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts [1, L] in one batch, padded with an ordinary token, so that a mask which is ignored shows."""
    longest = max(text.shape[1] for text in texts) + extra
    words = torch.full((len(texts), longest), 7)
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        start = longest - text.shape[1] if side == "left" else 0
        words[row, start : start + text.shape[1]] = text
        mask[row, start : start + text.shape[1]] = 1
    return words, mask


def close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("model_class", "form"),
    [
        (EffitransForSequenceClassification, "encoder"),
        (EffitransForSequenceClassification, "decoder"),
        (EffitransForTokenClassification, "encoder"),
        (EffitransForCausalLM, "decoder"),
    ],
    ids=["classify-encoder", "classify-decoder", "tag-encoder", "causal-lm"],
)
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(position, attention, side, model_class, form):
    model = build(model_class, form, position=position, attn_implementation=attention)
    texts = [tokens(1, length, seed=length) for length in LENGTHS]
    alone = [model(input_ids=text).logits[0] for text in texts]
    for extra in (0, 3):
        words, mask = padded(texts, side, extra)
        together = model(input_ids=words, attention_mask=mask).logits
        for row, expected in enumerate(alone):
            close(together[row] if expected.dim() == 1 else together[row][mask[row].bool()], expected)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_of_source_and_target(position, attention, side):
    model = build(EffitransForSeq2SeqLM, "encoder-decoder", position=position, attn_implementation=attention)
    sources = [tokens(1, length, seed=length) for length in LENGTHS]
    targets = [tokens(1, length, seed=length + 50) for length in (3, 1, 8, 6)]
    source, source_mask = padded(sources, side, extra=2)
    target, target_mask = padded(targets, "right")
    together = model(
        input_ids=source, attention_mask=source_mask, decoder_input_ids=target, decoder_attention_mask=target_mask
    ).logits
    for row, (text, written) in enumerate(zip(sources, targets, strict=True)):
        alone = model(input_ids=text, decoder_input_ids=written).logits[0]
        close(together[row][target_mask[row].bool()], alone)


@pytest.mark.parametrize("form", ["decoder", "encoder-decoder"])
@torch.no_grad()
def test_the_future_is_hidden(position, attention, form):
    model_class = EffitransForCausalLM if form == "decoder" else EffitransForSeq2SeqLM
    model = build(model_class, form, position=position, attn_implementation=attention)
    words = tokens(2, 9)
    changed = words.clone()
    changed[:, 5:] = tokens(2, 4, seed=8)
    if form == "decoder":
        first, second = (model(input_ids=x).logits for x in (words, changed))
    else:
        first, second = (model(input_ids=tokens(2, 6), decoder_input_ids=x).logits for x in (words, changed))
    close(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5:], second[:, 5:], atol=1e-3)
