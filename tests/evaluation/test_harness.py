"""`evaluate` from end to end on models that run in milliseconds."""

import json
import shutil

import pytest
import torch
from torch.nn.utils import prune
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForTokenClassification,
    BertModel,
    Cache,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from effitrans.errors import UsageError
from effitrans.evaluation import Cost, Record, compare_records, cost, evaluate, harness, latency
from effitrans.quantization import Int8, quantize
from effitrans.reporting.view import how_timed

QUICK = Cost(
    batches=(2,), lengths=("data",), min_repeats=2, min_seconds=0.0, warmup=1, threads=1, memory=False, data_examples=8
)


@pytest.fixture
def model(tiny_teacher):
    return AutoModelForSequenceClassification.from_pretrained(tiny_teacher)


@pytest.fixture
def damaged(tiny_teacher):
    """Another model of the same shape."""
    other = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    torch.manual_seed(1)
    with torch.no_grad():
        other.classifier.weight.normal_()
    return other


@pytest.mark.slow
def test_a_folder_against_a_folder_fills_every_field(tiny_teacher, tiny_task, tmp_path):
    cost = QUICK.model_copy(update={"memory": True, "lengths": ("data", 16)})
    record = evaluate(tiny_teacher, tiny_task, baseline=str(tiny_teacher), cost=cost, name="student")
    assert record.model == "student"
    assert record.task.name == "tiny-sentiment"
    assert record.quality["accuracy"].n == 16
    assert record.fidelity.baseline == f"{tiny_teacher.parent.name}/model"
    assert record.fidelity.agreement == 1
    assert record.fidelity.kl == 0
    assert record.fidelity.delta["accuracy"].ci95[0] < 0 < record.fidelity.delta["accuracy"].ci95[1]
    costs = record.cost
    assert costs.parameters == costs.nonzero_parameters + 1250 or costs.nonzero_parameters <= costs.parameters
    assert costs.bytes_on_disk == (tiny_teacher / "model.safetensors").stat().st_size
    assert costs.load_s > 0
    assert costs.peak_memory_bytes > costs.model_memory_bytes
    assert costs.flops > 0
    assert [(row.batch, row.length) for row in costs.latency] == [(2, "data"), (2, 16)]
    assert record.provenance.threads == 1
    record.save(tmp_path / "r.json")
    assert Record.load(tmp_path / "r.json") == record


def test_a_model_in_memory_has_no_bytes_on_disk(model, tiny_task, tiny_tokenizer):
    cost = QUICK.model_copy(update={"memory": True})
    model.train()
    record = evaluate(model, tiny_task, processor=tiny_tokenizer, cost=cost)
    assert record.cost.bytes_on_disk is None
    assert record.cost.load_s is None
    assert record.cost.peak_memory_bytes is None
    assert any("not saved" in note for note in record.notes)
    assert record.fidelity is None
    assert record.cost.latency[0].ratio_to_baseline is None
    assert model.training, "the caller's mode is put back"


def test_the_same_seed_gives_the_same_record(model, damaged, tiny_task, tiny_tokenizer):
    first, second = (
        evaluate(damaged, tiny_task, processor=tiny_tokenizer, baseline=model, cost=None, seed=3) for _ in range(2)
    )
    assert first.quality == second.quality
    assert first.fidelity == second.fidelity
    assert first.cost is None


def test_fidelity_is_that_of_the_logits(model, damaged, tiny_task, tiny_tokenizer):
    from effitrans.tasks import load_task, predict

    record = evaluate(damaged, tiny_task, processor=tiny_tokenizer, baseline=model, cost=None)
    task = load_task(tiny_task)
    ours, theirs = (
        torch.tensor(predict(m, task, "test", tiny_tokenizer).scores).log_softmax(1).double() for m in (damaged, model)
    )
    assert record.fidelity.agreement == pytest.approx(float((ours.argmax(1) == theirs.argmax(1)).double().mean()))
    assert record.fidelity.kl == pytest.approx(
        float(torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")), rel=1e-4
    )
    accuracy = record.quality["accuracy"].value
    delta = record.fidelity.delta["accuracy"]
    assert delta.retained == pytest.approx(accuracy / (accuracy - delta.value))
    flips = record.fidelity.flips
    assert (len(flips.gained) - len(flips.lost)) / 16 == pytest.approx(delta.value)


def test_the_tokenizer_saved_with_the_model_is_found(model, tiny_teacher, tiny_task):
    assert evaluate(model, tiny_task, cost=None).quality == evaluate(tiny_teacher, tiny_task, cost=None).quality


def test_a_limit_is_noted_and_changes_the_fingerprint(model, tiny_task):
    whole, part = evaluate(model, tiny_task, cost=None), evaluate(model, tiny_task, cost=None, limit=5)
    assert part.quality["accuracy"].n == 5
    assert whole.task.fingerprint != part.task.fingerprint
    assert any("first 5 examples" in note for note in part.notes)


def test_nan_predictions_are_refused_with_the_first_row(model, tiny_task):
    with torch.no_grad():
        model.bert.pooler.dense.bias.fill_(100)
        model.classifier.weight[0] = 3e38  # finite, and the sum over the width is not
    with pytest.raises(UsageError, match=r"scores of 16 of 16 examples are NaN or infinite, the first at row 0"):
        evaluate(model, tiny_task, cost=None)


@pytest.mark.parametrize("baseline", ["./no/such/folder", "/no/such/folder"])
def test_a_missing_baseline_is_refused_as_such(model, tiny_task, baseline):
    with pytest.raises(UsageError, match=r"baseline: .*no/such/folder"):
        evaluate(model, tiny_task, baseline=baseline, cost=None)


def test_an_empty_split_is_refused(model, tiny_task):
    (tiny_task.parent / "test.jsonl").write_text("")
    with pytest.raises(UsageError, match="empty"):
        evaluate(model, tiny_task, cost=None)


def test_a_metric_that_does_not_fit_is_refused(model, tiny_task):
    tiny_task.write_text(tiny_task.read_text().replace("accuracy", "bleu"))
    with pytest.raises(UsageError, match="bleu"):
        evaluate(model, tiny_task, cost=None)


def test_a_setting_that_would_do_nothing_is_refused(model, tiny_task):
    for optimize in (True, False):
        with pytest.raises(UsageError, match=rf"optimize={optimize}.*cost=None"):
            evaluate(model, tiny_task, cost=None, optimize=optimize)


@pytest.mark.parametrize(
    ("optimize", "integer_baseline", "modes"),
    [
        (None, False, ("compiled", "eager")),
        (None, True, ("compiled", "compiled")),
        (False, True, ("eager", "eager")),
        (True, False, ("compiled", "eager")),
    ],
    ids=["as-meant", "both-as-meant", "no-optimize", "optimize"],
)
def test_integer_models_are_timed_as_they_are_meant_to_run(
    model, tiny_task, tiny_tokenizer, monkeypatch, optimize, integer_baseline, modes
):
    monkeypatch.setattr(latency, "optimize", lambda model: model)
    monkeypatch.setattr(cost, "require_compiler", lambda device: None)
    monkeypatch.setattr(harness, "require_compiler", lambda device: None)
    integer = quantize(model, Int8())
    baseline = quantize(model, Int8()) if integer_baseline else model
    record = evaluate(
        integer, tiny_task, processor=tiny_tokenizer, baseline=baseline, cost=QUICK, optimize=optimize, name="int8"
    )
    assert (record.cost.model_mode, record.cost.baseline_mode) == modes
    (row,) = record.cost.latency
    assert row.compiled == (modes[0] == "compiled")
    eager = {f"{role}, eager" for role, mode in zip(("model", "baseline"), modes, strict=True) if mode == "compiled"}
    assert set(row.others) == {"baseline", *eager}
    assert any(note.startswith("timed compiled") for note in record.notes) == ("compiled" in modes)
    said = how_timed(compare_records([record]))
    assert ("int8" in said) == (modes[0] == "compiled")
    assert (record.fidelity.baseline in said) == (modes[1] == "compiled")


def test_models_without_integer_layers_are_timed_as_they_are(model, tiny_task, tiny_tokenizer):
    record = evaluate(model, tiny_task, processor=tiny_tokenizer, cost=QUICK)
    assert (record.cost.model_mode, record.cost.baseline_mode) == ("eager", None)
    assert "without" in how_timed(compare_records([record]))


def test_without_a_compiler_integer_models_have_no_speed_and_a_word_why(model, tiny_task, tiny_tokenizer, monkeypatch):
    def missing(device):
        raise UsageError("no compiler: install g++")

    monkeypatch.setattr(cost, "require_compiler", missing)
    monkeypatch.setattr(harness, "require_compiler", missing)
    integer = quantize(model, Int8())
    record = evaluate(integer, tiny_task, processor=tiny_tokenizer, cost=QUICK)
    assert record.cost.latency is None
    assert any("install g++; or time the model as it is (--no-optimize" in note for note in record.notes)
    with pytest.raises(UsageError, match="install g"):
        evaluate(integer, tiny_task, processor=tiny_tokenizer, cost=QUICK, optimize=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_a_compiled_model_is_timed_and_the_record_says_so(model, tiny_task, tiny_tokenizer):
    cost = QUICK.model_copy(update={"optimize_baseline": True, "lengths": ("data", 16)})
    record = evaluate(model, tiny_task, processor=tiny_tokenizer, baseline=model, cost=cost, optimize=True)
    assert any("compiled by effitrans.optimize" in note for note in record.notes)
    for row in record.cost.latency:
        assert row.compiled
        assert set(row.others) == {"model, eager", "baseline", "baseline, compiled"}
        assert row.ratio_to_baseline == row.others["baseline"].ratio


def test_something_that_is_no_model_is_refused(tiny_task):
    with pytest.raises(UsageError, match="received the module Linear"):
        evaluate(torch.nn.Linear(2, 2), tiny_task, cost=None)


def test_a_simulated_model_gets_no_speed(model, tiny_task):
    prune.random_unstructured(model.classifier, "weight", amount=0.5)
    record = evaluate(model, tiny_task, cost=QUICK)
    assert record.cost.latency is None
    assert record.cost.throughput is None
    assert any("simulation" in note for note in record.notes)


def write_task(folder, name, kind, lines, **fields):
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return {
        "name": name,
        "kind": kind,
        "data": {"train": str(folder / "rows.jsonl"), "test": str(folder / "rows.jsonl")},
    } | fields


def tiny_bert(tokenizer, **changes):
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        **changes,
    )


def test_a_regression(tmp_path, tiny_tokenizer):
    from transformers import BertForSequenceClassification

    rows = [{"text": "good film " * (i % 5 + 1), "score": i / 3} for i in range(12)]
    task = write_task(tmp_path, "r", "regression", rows, inputs="text", target="score", metrics=["pearson", "mse"])
    model = BertForSequenceClassification(tiny_bert(tiny_tokenizer, num_labels=1, problem_type="regression"))
    record = evaluate(model, task, processor=tiny_tokenizer, baseline=model, cost=QUICK)
    assert set(record.quality) == {"pearson", "mse"}
    assert record.fidelity.agreement is None
    assert record.fidelity.kl is None
    assert record.fidelity.delta["mse"].retained == 1


def test_tags(tmp_path, tiny_tokenizer):
    rows = [{"words": ["good", "film"], "tags": ["B-X", "O"]}, {"words": ["bad"], "tags": ["O"]}] * 3
    task = write_task(
        tmp_path, "t", "token-classification", rows, inputs="words", target="tags", metrics=["accuracy", "entity_f1"]
    )
    model = BertForTokenClassification(
        tiny_bert(tiny_tokenizer, id2label={0: "B-X", 1: "O"}, label2id={"B-X": 0, "O": 1})
    )
    record = evaluate(model, task, processor=tiny_tokenizer, baseline=model, cost=QUICK)
    assert record.fidelity.agreement == 1
    assert record.fidelity.delta["accuracy"].p_value is None, "tags of one sentence are not independent"


def test_a_causal_language_model(tmp_path, tiny_tokenizer):
    rows = [{"text": "good film bad plot the a very fine film not poor " * 4}] * 4
    task = write_task(
        tmp_path, "lm", "causal-lm", rows, inputs="text", metrics=["perplexity", "bits_per_byte"], max_length=16
    )
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32))
    record = evaluate(model, task, processor=tiny_tokenizer, baseline=model, cost=QUICK)
    assert 1 < record.quality["perplexity"].value < 100
    assert record.fidelity.agreement is None
    assert record.cost.throughput[0].tokens_per_s > 0
    (row,) = record.cost.generation
    assert (row.batch, row.context, row.new_tokens) == (2, "data", 16)
    assert row.first_token_ms > 0
    assert row.per_token_ratio_ci95[0] <= row.per_token_ratio <= row.per_token_ratio_ci95[1]


def test_contexts_that_leave_no_room_for_new_tokens_are_noted(tmp_path, tiny_tokenizer):
    rows = [{"text": "good film bad plot the a very fine film not poor " * 4}] * 4
    task = write_task(tmp_path, "lm", "causal-lm", rows, inputs="text", metrics=["perplexity"], max_length=16)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32))
    cost = QUICK.model_copy(update={"contexts": (28, 24), "new_tokens": 8})
    record = evaluate(model, task, processor=tiny_tokenizer, cost=cost)
    assert [row.context for row in record.cost.generation] == [24]
    assert any("28" in note and "at most 24 tokens before 8 new ones" in note for note in record.notes)


def test_later_tokens_are_timed_apart_from_the_first(tmp_path, tiny_tokenizer, monkeypatch):
    import time

    rows = [{"text": "good film bad plot the a very fine film not poor " * 4}] * 4
    task = write_task(tmp_path, "lm", "causal-lm", rows, inputs="text", metrics=["perplexity"], max_length=16)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=32))
    forward = type(model).forward

    def slow(self, input_ids=None, **options):
        if any(isinstance(value, Cache) for value in options.values()):
            time.sleep(0.05 if input_ids.shape[1] > 1 else 0.01)
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", slow)
    (row,) = evaluate(model, task, processor=tiny_tokenizer, cost=QUICK).cost.generation
    # Steps can take longer than their sleep on a busy machine, not shorter; the first is five times as long.
    assert row.first_token_ms > 50
    assert 10 < row.per_token_ms < 0.6 * row.first_token_ms


def test_vectors_of_pairs_of_texts(tmp_path, tiny_tokenizer):
    rows = [{"a": "good film", "b": "bad plot " * (i % 3 + 1), "score": i / 4} for i in range(8)]
    task = write_task(
        tmp_path, "e", "embedding", rows, inputs=["a", "b"], target="score", metrics=["spearman", "pearson"]
    )
    model = BertModel(tiny_bert(tiny_tokenizer))
    record = evaluate(model, task, processor=tiny_tokenizer, baseline=model, cost=QUICK)
    assert record.cost.latency[0].p50_ms > 0
    assert record.cost.latency[0].error is None
    assert record.fidelity.agreement is None


def test_a_translation(tmp_path, tiny_tokenizer):
    pytest.importorskip("sacrebleu")
    rows = [{"en": "good film", "de": "bad plot"}, {"en": "very fine plot", "de": "not poor film"}] * 2
    task = write_task(
        tmp_path, "mt", "seq2seq-lm", rows, inputs="en", target="de", metrics=["bleu", "chrf"], max_length=16
    )
    config = T5Config(
        vocab_size=len(tiny_tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    cost = QUICK.model_copy(update={"lengths": ("data", 8)})
    record = evaluate(T5ForConditionalGeneration(config), task, processor=tiny_tokenizer, cost=cost)
    assert set(record.quality) == {"bleu", "chrf"}
    assert [row.length for row in record.cost.latency] == ["data", 8]


def test_images_have_no_length(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_channels=1, num_labels=10,
    )  # fmt: skip
    cost = QUICK.model_copy(update={"lengths": ("data", 64)})
    record = evaluate(ViTForImageClassification(config), "digits", cost=cost, limit=40)
    assert [row.length for row in record.cost.latency] == ["data"]
    assert record.cost.throughput[0].tokens_per_s is None
    assert any("no length to choose" in note for note in record.notes)


def test_provenance_names_the_machine_and_the_code(model, tiny_task):
    provenance = evaluate(model, tiny_task, cost=None, seed=7).provenance
    assert provenance.seed == 7
    assert provenance.dtype == "float32"
    assert provenance.torch == torch.__version__
    assert provenance.created.endswith("+00:00")
    assert provenance.device


def test_code_outside_git_has_no_commit(tmp_path):
    from effitrans.evaluation.provenance import git_state

    (tmp_path / "__init__.py").write_text("")
    assert git_state(tmp_path) == (None, None)
