"""The models learn: gradients reach every weight, the loss falls, checkpointing changes nothing."""

import math

import pytest
import torch

from effitrans.models import (
    EffitransConfig,
    EffitransForCausalLM,
    EffitransForSeq2SeqLM,
    EffitransForSequenceClassification,
    EffitransModel,
)

from .cases import ALL_POSITIONS, SIZES, TRAINABLE, TRAINABLE_IDS, VOCABULARY, Case, tokens

every_trainable = pytest.mark.parametrize("case", TRAINABLE, ids=TRAINABLE_IDS)


@every_trainable
@pytest.mark.parametrize("position", ["learned", "relative"])
def test_every_weight_gets_a_gradient(case: Case, position):
    model = case.build(position=position, hidden_act="swiglu").train()
    model(**case.labelled()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A bias on the keys moves all scores of a query alike, which softmax does not see.
        assert parameter.grad.abs().max() > 1e-9 or name.endswith("k_proj.bias"), name


@every_trainable
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_gradient(case: Case, reentrant):
    model = case.build(position="relative").train()
    model(**case.labelled()).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    calls = []
    layer = model.model.stacks[0].layers[0]
    layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    if reentrant:
        model.enable_input_require_grads()
    model(**case.labelled()).loss.backward()
    assert len(calls) == 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


OPTIONS = [
    *({"position": position, "norm": norm} for position in ALL_POSITIONS for norm in ("pre", "post")),
    {"hidden_act": "relu"},
    {"hidden_act": "swiglu", "norm_type": "rms_norm"},
    {"norm": "post", "norm_type": "rms_norm"},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4, "head_dim": 6},
    {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 41},
    {"tie_word_embeddings": False},
]


def losses(model, inputs, steps: int = 25) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    found = []
    for _ in range(steps):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_a_decoder_learns_a_text_by_heart(options):
    torch.manual_seed(0)
    model = EffitransForCausalLM(EffitransConfig(**{**SIZES, "form": "decoder", **options})).train()
    words = tokens(4, 9)
    found = losses(model, {"input_ids": words, "labels": words})
    assert found[0] == pytest.approx(math.log(VOCABULARY), abs=0.5)
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_encoder_decoder_learns_pairs_by_heart(norm):
    torch.manual_seed(0)
    model = EffitransForSeq2SeqLM(EffitransConfig(**{**SIZES, "form": "encoder-decoder", "norm": norm})).train()
    found = losses(model, {"input_ids": tokens(4, 5), "labels": tokens(4, 6, seed=2)})
    assert found[0] == pytest.approx(math.log(VOCABULARY), abs=0.5)
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize("form", ["encoder", "decoder"])
def test_a_classifier_learns_and_generalizes(form):
    """Which of two tokens is in the text; tested on texts it has not seen."""
    torch.manual_seed(0)
    model = EffitransForSequenceClassification(EffitransConfig(**{**SIZES, "form": form, "num_labels": 2})).train()
    words, labels = tokens(160, 6) % (VOCABULARY - 3) + 3, torch.arange(160) % 2
    words[torch.arange(160), torch.randint(6, (160,))] = labels + 1
    losses(model, {"input_ids": words[:128], "labels": labels[:128]}, steps=40)
    with torch.no_grad():
        predicted = model.eval()(input_ids=words[128:]).logits.argmax(-1)
    assert (predicted == labels[128:]).float().mean() > 0.9


@pytest.mark.parametrize("layers", [2, 12])
def test_signals_keep_their_size_at_the_start(layers):
    torch.manual_seed(0)
    options = {**SIZES, "hidden_size": 64, "num_hidden_layers": layers, "vocab_size": 500, "form": "decoder"}
    model = EffitransForCausalLM(EffitransConfig(**options)).eval()
    with torch.no_grad():
        words = tokens(4, 30)
        outputs = model(input_ids=words, labels=words, output_hidden_states=True)
    assert outputs.loss.item() == pytest.approx(math.log(500), abs=0.5)
    assert 0.02 < outputs.hidden_states[-2].std() < 2


@pytest.mark.parametrize("form", ["decoder", "encoder-decoder"])
def test_embeddings_start_as_large_as_the_config_says(form):
    options = {**SIZES, "hidden_size": 64, "vocab_size": 500, "form": form, "initializer_range": 0.125}
    for position in ("sinusoidal", "learned"):
        model = EffitransModel(EffitransConfig(**options, position=position))
        stack = model.decoder
        assert stack.embed_tokens.weight.std().item() == pytest.approx(0.125, rel=0.05)
        table = getattr(stack.embed_positions, "table", None)
        table = stack.embed_positions.weight if table is None else table[:50]
        assert table.square().mean().sqrt().item() == pytest.approx(0.125, rel=0.05)
