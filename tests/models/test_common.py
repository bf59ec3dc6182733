"""What transformers expects of any model: loading, outputs, embeddings, attention implementations, precision."""

import copy

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from effitrans.errors import UsageError
from effitrans.models import EffitransConfig, EffitransForSequenceClassification, EffitransModel

from .cases import ALL_POSITIONS, CASE_IDS, CASES, READS_TOKENS, READS_TOKENS_IDS, Case, build, output_of, text

every_case = pytest.mark.parametrize("case", CASES, ids=CASE_IDS)


@every_case
@torch.no_grad()
def test_reloads_bit_equal_through_the_auto_class(case: Case, tmp_path):
    model = case.build()
    model.save_pretrained(tmp_path)
    reloaded = getattr(transformers, case.auto_class).from_pretrained(tmp_path)
    assert type(reloaded) is case.model_class
    assert torch.equal(output_of(model(**case.inputs())), output_of(reloaded(**case.inputs())))
    assert reloaded.config.to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize("position", ALL_POSITIONS)
@torch.no_grad()
def test_positions_reload_bit_equal(position, tmp_path):
    model = build(EffitransModel, "decoder", position=position)
    model.save_pretrained(tmp_path)
    reloaded, info = EffitransModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model(**text()).last_hidden_state, reloaded(**text()).last_hidden_state)


@torch.no_grad()
def test_backbone_loads_under_a_new_head(tmp_path):
    backbone = build(EffitransModel, position="sinusoidal")
    backbone.save_pretrained(tmp_path)
    model, info = EffitransForSequenceClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert torch.equal(model.model(**text()).last_hidden_state, backbone(**text()).last_hidden_state)
    assert model(**text()).logits.isfinite().all()
    assert 0.01 < model.classifier.weight.std() < 0.03


@pytest.mark.parametrize("position", ALL_POSITIONS)
def test_missing_weights_start_as_in_a_new_model(position, tmp_path):
    """Loading builds the model without memory behind it; what the file lacks must be initialised afterwards."""
    build(EffitransModel, "encoder-decoder", position=position, hidden_size=64).save_pretrained(tmp_path)
    save_file({"encoder.norm.bias": torch.zeros(64)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    fresh = EffitransModel(EffitransConfig.from_pretrained(tmp_path))
    loaded = EffitransModel.from_pretrained(tmp_path)
    pairs = [*zip(fresh.named_parameters(), loaded.parameters(), strict=True)]
    pairs += [*zip(fresh.named_buffers(), loaded.buffers(), strict=True)]
    for (name, new), missing in pairs:
        assert missing.isfinite().all(), name
        chance = 7 * new.numel() ** -0.5
        assert missing.mean().item() == pytest.approx(new.mean().item(), abs=chance * new.std().item()), name
        assert missing.std().item() == pytest.approx(new.std().item(), rel=chance), name


@every_case
@pytest.mark.parametrize("position", ALL_POSITIONS)
@torch.no_grad()
def test_eager_and_sdpa_agree(case: Case, position):
    inputs = case.inputs()
    model = case.build(position=position, attn_implementation="eager")
    expected = output_of(model(**inputs))
    model.set_attn_implementation("sdpa")
    mask = inputs.get("attention_mask")
    actual = output_of(model(**inputs))
    if mask is not None and actual.shape[:2] == mask.shape:
        expected, actual = expected[mask.bool()], actual[mask.bool()]
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


@every_case
@torch.no_grad()
def test_hidden_states_and_attentions(case: Case):
    model = case.build(attn_implementation="eager")
    plain = model(**case.inputs())
    outputs = model(**case.inputs(), output_hidden_states=True, output_attentions=True)
    assert torch.equal(output_of(plain), output_of(outputs))
    config, length = model.config, 6 if "image" in case.name else 7
    sides = [("hidden_states", "attentions", config.num_hidden_layers, length)]
    if case.form == "encoder-decoder":
        sides = [
            ("encoder_hidden_states", "encoder_attentions", config.num_hidden_layers, 7),
            ("decoder_hidden_states", "decoder_attentions", config.num_decoder_layers, 5),
        ]
        assert [a.shape for a in outputs.cross_attentions] == [(3, 4, 5, 7)] * 3
    for states, attentions, layers, length in sides:
        assert [h.shape for h in outputs[states]] == [(3, length, config.hidden_size)] * (layers + 1)
        assert [a.shape for a in outputs[attentions]] == [(3, 4, length, length)] * layers
        torch.testing.assert_close(outputs[attentions][0].sum(-1), torch.ones(3, 4, length))
    assert "hidden_states" not in plain
    assert "attentions" not in plain


@every_case
@torch.no_grad()
def test_tuple_output_holds_the_same(case: Case):
    model = case.build()
    outputs = model(**case.inputs())
    as_tuple = model(**case.inputs(), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], outputs[0])
    assert len(as_tuple) == len(outputs.to_tuple())


@pytest.mark.parametrize("case", READS_TOKENS, ids=READS_TOKENS_IDS)
@torch.no_grad()
def test_embeddings_in_place_of_tokens(case: Case):
    model = case.build()
    inputs = case.inputs()
    expected = output_of(model(**inputs))
    embed = model.get_input_embeddings()
    inputs["inputs_embeds"] = embed(inputs.pop("input_ids"))
    if "decoder_input_ids" in inputs:
        inputs["decoder_inputs_embeds"] = embed(inputs.pop("decoder_input_ids"))
    assert torch.equal(output_of(model(**inputs)), expected)


@pytest.mark.parametrize("case", READS_TOKENS, ids=READS_TOKENS_IDS)
@pytest.mark.parametrize("size", [50, 30])
@torch.no_grad()
def test_resized_embeddings(case: Case, size, tmp_path):
    model = case.build()
    inputs = {name: x.clamp(max=29) for name, x in case.inputs().items()}
    expected = output_of(model(**inputs))
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    assert {t.weight.shape for t in tables} == {(size, 32)}
    assert len({t.weight.data_ptr() for t in tables}) == 1
    actual = output_of(model(**inputs))
    if case.name.endswith("-lm"):
        assert actual.shape[-1] == size
        assert model.lm_head.weight is model.get_input_embeddings().weight
        shared = min(size, expected.shape[-1])
        actual, expected = actual[..., :shared], expected[..., :shared]
    torch.testing.assert_close(actual, expected)
    model.save_pretrained(tmp_path)
    assert case.model_class.from_pretrained(tmp_path).get_input_embeddings().weight.shape == (size, 32)


@pytest.mark.parametrize("case", [c for c in CASES if c.name.endswith("-lm")], ids=lambda c: c.name)
def test_tied_weights_are_one_tensor_saved_once(case: Case, tmp_path):
    from safetensors import safe_open

    model = case.build()
    tables = {m.weight.data_ptr() for m in model.modules() if isinstance(m, nn.Embedding)}
    assert tables == {model.lm_head.weight.data_ptr()}
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert sum("embed_tokens" in name or "lm_head" in name for name in list(file.keys())) == 1
    reloaded = case.model_class.from_pretrained(tmp_path)
    tables = {m.weight.data_ptr() for m in reloaded.modules() if isinstance(m, nn.Embedding)}
    assert tables == {reloaded.lm_head.weight.data_ptr()}


@pytest.mark.parametrize("case", [c for c in CASES if c.name.endswith("-lm")], ids=lambda c: c.name)
@torch.no_grad()
def test_untied_weights_stay_apart(case: Case, tmp_path):
    model = case.build(tie_word_embeddings=False)
    pointers = [m.weight.data_ptr() for m in model.modules() if isinstance(m, nn.Embedding)]
    pointers.append(model.lm_head.weight.data_ptr())
    assert len(set(pointers)) == len(pointers)
    model.save_pretrained(tmp_path)
    reloaded = case.model_class.from_pretrained(tmp_path)
    assert torch.equal(output_of(model(**case.inputs())), output_of(reloaded(**case.inputs())))


@pytest.mark.parametrize("position", ALL_POSITIONS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_half_precision_is_close_and_survives_loading(position, attention, tmp_path):
    model = build(EffitransModel, "encoder-decoder", position=position, attn_implementation=attention)
    inputs = {**text(), "decoder_input_ids": text()["input_ids"]}
    expected = model(**inputs).last_hidden_state
    model.save_pretrained(tmp_path)
    cast = EffitransModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation=attention)
    actual = cast(**inputs).last_hidden_state
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() < 0.06 * expected.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**inputs).last_hidden_state
    assert (mixed.float() - expected).norm() < 0.06 * expected.norm()


@torch.no_grad()
def test_copies_do_not_share_weights():
    model = build(EffitransModel)
    twin = copy.deepcopy(model)
    before = model(**text()).last_hidden_state
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(**text()).last_hidden_state, before)


def test_same_seed_same_weights():
    first, second, third = (build(EffitransModel, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


@torch.no_grad()
def test_dropout_acts_in_training_only():
    model = build(EffitransModel, hidden_dropout=0.3, attention_dropout=0.3)
    assert torch.equal(model(**text()).last_hidden_state, model(**text()).last_hidden_state)
    model.train()
    assert not torch.equal(model(**text()).last_hidden_state, model(**text()).last_hidden_state)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "received neither"),
        ({"input_ids": torch.ones(1, 2).long(), "inputs_embeds": torch.ones(1, 2, 32)}, "input_ids and inputs_embeds"),
        ({"pixel_values": torch.ones(1, 1, 2, 2)}, "exactly one of input_ids and inputs_embeds, received pixel_values"),
        ({"input_ids": torch.ones(1, 2).long(), "decoder_input_ids": torch.ones(1, 2).long()}, "no decoder_"),
    ],
)
def test_refuses_wrong_inputs(inputs, message):
    with pytest.raises(UsageError, match=message):
        build(EffitransModel)(**inputs)
