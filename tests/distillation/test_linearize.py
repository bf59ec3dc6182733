"""Softmax attention becomes another operator that gives nearly what it gave."""

import functools
import shutil

import pytest
import torch
import transformers

from effitrans import Training, UsageError, checkpoint, load_task, train
from effitrans.attention import (
    AttentionMask,
    AttentionOperator,
    Hybrid,
    Linear,
    Local,
    swap_attention,
)
from effitrans.attention.cache import OperatorCacheLayer
from effitrans.distillation import Linearization, linearize
from effitrans.distillation.conversion import low_rank, transfer
from effitrans.distillation.objectives.feature import relative_error
from effitrans.distillation.recording import through_interface
from effitrans.distillation.transfer import TransferHooks, only_trainable
from effitrans.evaluation import attention_error
from effitrans.recipes.steps import VERBS
from effitrans.tasks import build_processor
from effitrans.tasks.padding import Padding
from effitrans.training.data import resolve
from tests.architectures.families import FAMILIES
from tests.distillation.test_cache import _rows_of
from tests.tasks.cases import CASES, make_model
from tests.training.helpers import assert_same_weights, bert, sentences, splits, weights
from tests.training.kills import at_step

SETTINGS = {"batch_size": 16, "transfer": {"epochs": 3}, "epochs": 2, "learning_rate": 1e-3, "log_every": 6}


@pytest.fixture(scope="module")
def model():
    trained = bert(seed=7, num_hidden_layers=3)
    for parameter in trained.bert.encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    train(trained, sentences(256, seed=2), Training(epochs=4, batch_size=16, learning_rate=1e-3))
    return trained


def test_the_operator_has_the_seed_of_the_conversion(model):
    settings = {**SETTINGS, "transfer": {"max_steps": 1}, "max_steps": 1, "attention": "performer"}
    for options, expected in (({}, 4), ({"seed": 9}, 9)):
        result = linearize(model, splits(16), Linearization(**settings, seed=4, options=options))
        operators = [module for module in result.model.modules() if isinstance(module, AttentionOperator)]
        assert {operator.config.seed for operator in operators} == {expected}


def _batch(count=48, seed=11):
    rows = sentences(count, seed=seed)
    return Padding(0)([rows[i] for i in range(count)])


def _distance(student, teacher):
    batch = _batch()
    with torch.no_grad():
        mine, theirs = (side(**batch, output_hidden_states=True).hidden_states[-1] for side in (student, teacher))
    return relative_error(mine, theirs, batch["attention_mask"].bool()).item()


@pytest.mark.parametrize(
    ("attention", "options"),
    [("linear", {"feature_map": "hedgehog"}), ("local", {"window": 2})],
    ids=["linear", "local"],
)
def test_a_converted_model_is_nearer_than_a_swapped_one(attention, options, model):
    before = weights(model)
    settings = {**SETTINGS, "transfer": {"epochs": 6, "learning_rate": 5e-3}}
    result = linearize(model, splits(128), Linearization(**settings, attention=attention, options=options))
    swapped = swap_attention(model, {"linear": Linear, "local": Local}[attention](**options))
    assert _distance(result.model, model) < 0.8 * _distance(swapped, model)
    entries = checkpoint.history(result.model)
    assert [entry["verb"] for entry in entries] == ["train", "swap", "linearize"]
    assert entries[-1]["summary"]["transfer"]["steps"] == 48
    assert all(parameter.requires_grad for parameter in result.model.parameters())
    assert not result.model._forward_hooks
    for name, tensor in weights(model).items():
        assert torch.equal(tensor, before[name]), name
    assert model.config._attn_implementation == "sdpa"


def test_the_first_stage_teaches_each_layer_its_output_on_the_original_inputs(model):
    student = swap_attention(model, Linear(feature_map="hedgehog"), layers=[0, 2])
    batch = _batch(8)
    with through_interface(model):
        stage = TransferHooks(student, model)
        assert list(stage.modules) == [f"bert.encoder.layer.{i}.attention.self" for i in (0, 2)]
        with stage.attached():
            value = stage.loss(student.eval(), batch).item()
        errors = []
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states
            for path, state in zip(stage.modules, (states[0], states[2]), strict=True):
                tokens = batch["attention_mask"].bool()
                mask = AttentionMask(8, tokens.shape[1], tokens.shape[1], padding_BT=tokens)
                mine, theirs = (side.get_submodule(path)(state, mask)[0] for side in (student, model))
                errors.append(relative_error(mine, theirs, tokens))
    assert value == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)
    assert "logits" in student(**batch), "the hooks are gone"


def test_a_layer_that_computes_what_softmax_does_has_nothing_to_learn(model):
    student = swap_attention(model, Local(window=64))
    with through_interface(model):
        stage = TransferHooks(student, model)
        with stage.attached():
            assert stage.loss(student.eval(), _batch(8)).item() < 1e-8


def test_only_attention_learns_in_the_first_stage(model, monkeypatch):
    monkeypatch.setattr("effitrans.distillation.conversion.teach", lambda student, *args, **kwargs: _stop())
    seen = {}
    original = TransferHooks.loss

    def loss(self, *args):
        seen.update({name: parameter.requires_grad for name, parameter in self.student.named_parameters()})
        return original(self, *args)

    monkeypatch.setattr(TransferHooks, "loss", loss)
    for part, expected in (("operator", ".attention_operator."), ("attention", ".attention.self.")):
        options = {"feature_map": "hedgehog"}
        config = Linearization(options=options, transfer={"parameters": part, "max_steps": 1}, batch_size=4)
        with pytest.raises(Stop):
            linearize(model, sentences(8), config)
        assert {name for name, required in seen.items() if required} == {name for name in seen if expected in name}
    with pytest.raises(UsageError, match="has no parameters to learn"):
        linearize(model, sentences(8), Linearization(transfer={"parameters": "operator"}))


def test_accumulation_in_the_first_stage_equals_a_large_batch():
    """Rows of a decoder with lengths, and so numbers of labels, that differ much."""
    rows = sentences(8, shortest=2, longest=30)
    rows = rows.remove_columns("labels").add_column("labels", list(rows["input_ids"]))
    decoder = next(entry for entry in FAMILIES if entry.name == "gpt2").model()
    losses = []
    for sizes in ({"batch_size": 8}, {"batch_size": 2, "gradient_accumulation": 4}):
        config = Linearization(max_steps=1, transfer={"max_steps": 1}, group_by_length=False, log_every=1, **sizes)
        student = swap_attention(decoder, Linear())
        found = resolve(rows, student, None, config)
        losses.append(transfer(student, decoder, found, config, output_dir=None, resume=False).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


class Stop(Exception):
    pass


def _stop():
    raise Stop


@pytest.mark.parametrize("step", [20, 30], ids=["first-stage", "second-stage"])
def test_a_run_that_was_stopped_goes_on(step, model, tmp_path):
    config = Linearization(
        **{**SETTINGS, "epochs": 6, "max_steps": 32}, options={"feature_map": "hedgehog"}, save_every=4
    )
    expected = linearize(model, splits(), config, output_dir=tmp_path / "undisturbed")
    undo = at_step(step, _stop) if step == 30 else at_step(step - 8, _stop)
    try:
        with pytest.raises(Stop):
            linearize(model, splits(), config, output_dir=tmp_path / "run")
    finally:
        undo()
    result = linearize(model, splits(), config, output_dir=tmp_path / "run", resume=True)
    assert_same_weights(result.model, expected.model)
    assert result.history == expected.history
    summaries = [checkpoint.history(side.model)[-1]["summary"] for side in (result, expected)]
    assert summaries[0] == summaries[1]


def test_a_first_stage_of_another_operator_is_not_gone_on_with(model, tmp_path):
    settings = {"max_steps": 2, "transfer": {"max_steps": 2}, "attention": "local"}
    linearize(model, sentences(16), Linearization(**settings, options={"window": 2}), output_dir=tmp_path)
    shutil.rmtree(tmp_path / "heal")
    with pytest.raises(UsageError, match=r"another model than the run in .*transfer"):
        linearize(model, sentences(16), Linearization(**settings, options={"window": 8}), output_dir=tmp_path,
                  resume=True)  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "distilbert", "base-decoder", "bart"])
def test_families(name, tmp_path):
    family = next(entry for entry in FAMILIES if entry.name == name)
    original = family.model()
    config = Linearization(
        batch_size=3, max_steps=2, transfer={"max_steps": 12, "learning_rate": 1e-2}, log_every=1, warmup_ratio=0,
        options={"feature_map": "hedgehog"},
    )  # fmt: skip
    result = linearize(original, _rows_of(family.inputs()), config, output_dir=tmp_path / "run")
    import json

    states = sorted((tmp_path / "run" / "transfer").rglob("trainer_state.json"))
    losses = [entry["loss"] for entry in json.loads(states[-1].read_text())["log_history"] if "loss" in entry]
    assert min(losses[-3:]) < 0.8 * losses[0]
    checkpoint.save(result.model, tmp_path / "model")
    again = checkpoint.load_model(tmp_path / "model", family.auto_class)
    with torch.no_grad():
        assert torch.equal(again(**family.inputs()).logits, result.model(**family.inputs()).logits)


def test_low_rank_updates_are_merged(model):
    pytest.importorskip("peft")
    student = swap_attention(model, Linear(feature_map="hedgehog"))
    before, batch = weights(student), _batch(4)
    with low_rank(student, 2):
        learning = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
        assert all("lora_" in name or "attention_operator" in name for name in learning)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
            expected = student.eval()(**batch).logits
    assert set(weights(student)) == set(before)
    with torch.no_grad():
        torch.testing.assert_close(student(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    changed = {name for name, tensor in weights(student).items() if not torch.equal(tensor, before[name])}
    assert changed == {
        name for name in before if "attention" in name and name.endswith("weight") and "operator" not in name
        and "LayerNorm" not in name
    }  # fmt: skip
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_low_rank_healing(name, model, tmp_path):
    pytest.importorskip("peft")
    family = next(entry for entry in FAMILIES if entry.name == name)
    original, rows = (model, sentences(32)) if name == "bert" else (family.model(), _rows_of(family.inputs()))
    config = Linearization(
        batch_size=8, max_steps=4, transfer={"max_steps": 4}, lora_rank=2, options={"feature_map": "hedgehog"}
    )
    result = linearize(original, rows, config, output_dir=tmp_path / "run")
    original_part, student_part = (side.base_model.get_input_embeddings().weight for side in (original, result.model))
    assert torch.equal(original_part, student_part)
    checkpoint.save(result.model, tmp_path / "model")
    assert checkpoint.history(result.model)[-1]["verb"] == "linearize"
    assert_same_weights(checkpoint.load_model(tmp_path / "model", family.auto_class), result.model)


def test_only_trainable_gives_back_what_was(model):
    parameters = list(model.parameters())
    parameters[1].requires_grad_(False)
    with only_trainable(model, parameters[:1]):
        assert [parameter.requires_grad for parameter in parameters[:3]] == [True, False, False]
    assert [parameter.requires_grad for parameter in parameters[:3]] == [True, False, True]
    parameters[1].requires_grad_(True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention": "lineal"}, "did you mean 'linear'"),
        ({"attention": "local", "options": {"windows": 3}}, "did you mean 'window'"),
        ({"attention": "linear", "window": 3}, "window"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"layers": "best:0"}, "expected best:N"),
        ({"sequence_level": True}, "sequence_level"),
        ({"layers": "best:1.5"}, "expected best:N"),
        ({"layers": "error"}, "expected best:N"),
    ],
)
def test_refused(values, message):
    with pytest.raises(UsageError, match=message):
        VERBS["linearize"].parse(values, "step 1")


def test_a_step_takes_the_settings_of_the_operator():
    config = VERBS["linearize"].parse({"attention": "local", "window": 8, "epochs": 2}, "step 1")
    assert (config.attention, config.options, config.epochs) == ("local", {"window": 8}, 2)
    schema = VERBS["linearize"].schema()
    assert {"attention", "window", "feature_map", "transfer", "epochs"} <= set(schema["properties"])


def _operators(model):
    layers = model.bert.encoder.layer
    return [i for i, layer in enumerate(layers) if hasattr(layer.attention.self, "attention_operator")]


def test_further_teachers_read_what_the_model_does_not(tmp_path):
    """A DistilBERT under a BERT as second teacher, which reads token types."""
    task = load_task(CASES["sequence-classification"].task(tmp_path))
    tokenizer = build_processor(task)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model, other = (make_model(name, task, tokenizer, 3) for name in ("distilbert", "bert"))
    checkpoint.save(other, tmp_path / "other", tokenizer)
    config = Linearization(
        teachers={str(tmp_path / "other"): 1.0}, objective={"response": 1.0}, transfer={"max_steps": 1}, max_steps=1
    )
    seen = []
    forward = transformers.BertForSequenceClassification.forward

    @functools.wraps(forward)
    def spy(self, *args, **kwargs):
        seen.append(set(kwargs))
        return forward(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.BertForSequenceClassification, "forward", spy)
        linearize(model, task, config, processor=tokenizer)
    assert seen
    assert all("token_type_ids" in names for names in seen)


def test_layers_are_chosen_by_their_error(model):
    config = {
        "attention": "local",
        "options": {"window": 2},
        "transfer": {"max_steps": 1},
        "max_steps": 1,
        "batch_size": 8,
    }
    rows = sentences(96)
    batches = [Padding(0)([rows[i] for i in range(start, start + 8)]) for start in range(0, 64, 8)]
    errors = {e.layer: e.error for e in attention_error(model, batches, Local(window=2))}
    ranked = sorted(errors, key=errors.__getitem__)
    assert ranked != sorted(ranked) or len({round(error, 3) for error in errors.values()}) == 3
    for rule, expected in (
        ("best:1", ranked[:1]),
        ("best:2", ranked[:2]),
        (f"error:{(errors[ranked[1]] + errors[ranked[2]]) / 2:.6f}", ranked[:2]),
    ):
        result = linearize(model, rows, Linearization(**config, layers=rule))
        assert _operators(result.model) == sorted(expected)
        summary = checkpoint.history(result.model)[-1]["summary"]
        assert summary["layers_converted"] == sorted(expected)
        assert summary["layer_errors"] == pytest.approx({str(i): e for i, e in errors.items()}, rel=1e-3)
    assert _operators(model) == []
    assert model.config._attn_implementation == "sdpa"
    for rule, message in (("best:4", "into 3 of 3 layers"), ("error:0.0001", "the smallest is")):
        with pytest.raises(UsageError, match=message):
            linearize(model, rows, Linearization(**config, layers=rule))


def _transfer_error(student, original):
    with through_interface(original):
        stage = TransferHooks(student, original)
        with stage.attached(), torch.no_grad():
            return stage.loss(student.eval(), _batch()).item()


def test_hybrid_layers_come_near_to_what_they_replace(model):
    """A window of exact attention and learned features beyond give on other texts what each layer gave."""
    stages = {"transfer": {"epochs": 12, "learning_rate": 5e-3}, "max_steps": 1, "learning_rate": 1e-6}
    config = Linearization(**{**SETTINGS, **stages}, attention="hybrid", options={"window": 3})
    result = linearize(model, splits(128), config)
    swapped = swap_attention(model, Hybrid(window=3))
    assert _transfer_error(result.model, model) < 0.8 * _transfer_error(swapped, model)
    assert _distance(result.model, model) < 0.9 * _distance(swapped, model)
    operators = [m for m in result.model.modules() if isinstance(m, AttentionOperator)]
    assert [operator.config for operator in operators] == 3 * [Hybrid(window=3)]


@pytest.mark.parametrize("name", ["gpt2", "llama", "base-decoder"])
@pytest.mark.parametrize(
    ("attention", "options"), [("linear", {"feature_map": "hedgehog"}), ("hybrid", {"window": 3})], ids=str
)
def test_a_converted_decoder_generates_with_a_constant_state(name, attention, options, tmp_path):
    family = next(entry for entry in FAMILIES if entry.name == name)
    config = Linearization(batch_size=3, max_steps=2, transfer={"max_steps": 2}, attention=attention, options=options)
    converted = linearize(family.model(), _rows_of(family.inputs()), config).model
    checkpoint.save(converted, tmp_path / "model")
    model = checkpoint.load_model(tmp_path / "model", family.auto_class)
    prompt = torch.tensor([[5, 6, 7, 8]])
    settings = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0}
    held, texts = [], []
    for length in (6, 20):
        out = model.generate(
            prompt, max_new_tokens=length, min_new_tokens=length, return_dict_in_generate=True, **settings
        )
        assert all(isinstance(layer, OperatorCacheLayer) for layer in out.past_key_values.layers)
        held.append(sum(layer.num_bytes() for layer in out.past_key_values.layers))
        texts.append(out.sequences)
    assert held[0] == held[1] > 0
    without = model.generate(prompt, max_new_tokens=20, min_new_tokens=20, use_cache=False, **settings)
    assert torch.equal(texts[1], without)
