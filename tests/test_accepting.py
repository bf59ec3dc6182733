"""What every verb takes as a model and as a config, and what it refuses before anything is done."""

import collections

import pytest
import torch
import transformers
from torch import nn

import effitrans
from effitrans import (
    Cost,
    Distillation,
    FFNPruning,
    HeadPruning,
    Importance,
    Int8,
    Linearization,
    Pruning,
    Training,
    UsageError,
    VocabularyPruning,
    attention_error,
    distill,
    evaluate,
    export,
    linearize,
    make_student,
    measure_importance,
    optimize,
    prune,
    prune_vocabulary,
    quantize,
    swap_attention,
    train,
)
from effitrans.attention import Local, Performer
from effitrans.checkpoint import load_model, save
from effitrans.checkpoint.accepting import as_model
from tests.training.helpers import assert_same_weights, bert, sentences

STEP = {"max_steps": 1, "batch_size": 4}
ROWS = sentences(4)

VERBS = {
    "train": lambda model, folder: train(model, ROWS, Training(**STEP)),
    "distill": lambda model, folder: distill(model, bert(seed=1), ROWS, Distillation(**STEP)),
    "distill-from": lambda model, folder: distill(bert(seed=1), model, ROWS, Distillation(**STEP)),
    "linearize": lambda model, folder: linearize(model, ROWS, Linearization(transfer={"max_steps": 1}, **STEP)),
    "make_student": lambda model, folder: make_student(model, "layers=1"),
    "prune": lambda model, folder: prune(model, HeadPruning(ratio=0.5)),
    "prune_vocabulary": lambda model, folder: prune_vocabulary(model, None, ["a"]),
    "measure_importance": lambda model, folder: measure_importance(model),
    "quantize": lambda model, folder: quantize(model),
    "swap_attention": lambda model, folder: swap_attention(model, Local(window=2)),
    "attention_error": lambda model, folder: attention_error(model, ROWS, Local(window=2)),
    "evaluate": lambda model, folder: evaluate(model, "digits", cost=None),
    "evaluate-against": lambda model, folder: evaluate(bert(), "digits", baseline=model, cost=None),
    "export": lambda model, folder: export(model, folder),
    "optimize": lambda model, folder: optimize(model),
    "save": lambda model, folder: save(model, folder),
}

verbs = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


def pipeline():
    return collections.namedtuple("Pipeline", "model")(bert())


def adapted() -> transformers.PreTrainedModel:
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["query"]), bert())


def wrapped() -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query"]))


def with_value(value: float) -> transformers.PreTrainedModel:
    model = bert()
    model.bert.pooler.dense.bias.data[3] = value
    return model


def on_meta() -> transformers.PreTrainedModel:
    with torch.device("meta"):
        return bert()


REFUSED = {
    "peft": (wrapped, r"merge_and_unload\(\)"),
    "adapters": (adapted, r"merge_and_unload\(\)"),
    "pipeline": (pipeline, r"pass its model, \.model"),
    "compiled": (lambda: torch.compile(bert()), r"pass its model, \._orig_mod"),
    "class": (lambda: transformers.BertModel, r"BertModel\.from_pretrained"),
    "state-dict": (lambda: bert().state_dict(), "load_state_dict"),
    "module": (lambda: nn.Linear(2, 2), "the module Linear"),
    "number": (lambda: 3, r"a int \(3\)"),
    "nan": (lambda: with_value(float("nan")), r"NaN in bert\.pooler\.dense\.bias"),
    "infinity": (lambda: with_value(float("-inf")), r"infinite values in bert\.pooler\.dense\.bias"),
    "meta": (on_meta, "no values for bert"),
}


@pytest.mark.parametrize("kind", REFUSED)
@verbs
def test_what_is_no_whole_model_is_refused(verb, kind, tmp_path):
    make, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message):
        verb(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_no_model(tiny_tokenizer):
    with pytest.raises(UsageError, match="the model comes first"):
        train(tiny_tokenizer, ROWS)


def test_merged_adapters_are_a_model():
    model = wrapped().merge_and_unload()
    assert quantize(model).is_quantized


def test_adapters_of_a_model_become_a_peft_model_by_the_remedy(tmp_path):
    peft = pytest.importorskip("peft")
    wrapped().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="merge_and_unload"):
        prune(tmp_path, HeadPruning(ratio=0.5))
    merged = peft.PeftModel.from_pretrained(bert(), str(tmp_path)).merge_and_unload()
    assert as_model(merged) is merged


def test_masks_in_buffers_may_be_infinite():
    model = bert()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    assert as_model(model) is model


PATHS = {
    "quantize": lambda model: quantize(model),
    "prune": lambda model: prune(model, HeadPruning(ratio=0.5)),
    "swap_attention": lambda model: swap_attention(model, "local"),
    "make_student": lambda model: make_student(model, "layers=1"),
}


@pytest.mark.parametrize("verb", PATHS.values(), ids=PATHS)
def test_a_folder_in_the_place_of_a_model(verb, tmp_path):
    save(bert(), tmp_path / "model")
    assert_same_weights(verb(tmp_path / "model"), verb(load_model(tmp_path / "model", None)))


def test_a_folder_brings_its_processor(tiny_teacher, tiny_task):
    training = Training(max_steps=1, batch_size=4)
    assert train(str(tiny_teacher), str(tiny_task), training).steps == 1
    assert distill(tiny_teacher, load_model(tiny_teacher, None), tiny_task, Distillation(**STEP)).steps == 1


def test_a_missing_folder():
    with pytest.raises(UsageError, match="there is no folder"):
        quantize("./no/such/folder")


NAMES = {
    "quantize": (lambda model: quantize(model, "nf4"), lambda model: quantize(model, effitrans.quantization.NF4())),
    "swap_attention": (
        lambda model: swap_attention(model, "performer"),
        lambda model: swap_attention(model, Performer()),
    ),
}


@pytest.mark.parametrize(("by_name", "by_config"), NAMES.values(), ids=NAMES)
def test_a_name_stands_for_its_config(by_name, by_config):
    left, right = by_name(bert()), by_config(bert())
    assert_same_weights(left, right)
    assert left.config.to_dict() == right.config.to_dict()


def test_names_of_objectives_and_operators():
    rows = sentences(2)
    data = {"train": rows, "validation": rows}
    found = distill(bert(), bert(seed=1), data, "response,cosine").model
    assert list(effitrans.checkpoint.history(found)[-1]["config"]["objective"]) == ["response", "cosine"]
    assert attention_error(bert(), rows, "local", layers=[0])[0].operator == Local()
    assert attention_error(bert(), rows, ["local", Local(window=2)], layers=[0])[1].operator == Local(window=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prune(bert(), Int8()), "prune takes a config such as HeadPruning.*Int8, which is for quantize"),
        (lambda: prune(bert(), None), "received None"),
        (lambda: prune(bert(), "heads"), "received 'heads'"),
        (lambda: prune(bert(), HeadPruning), r"the class HeadPruning, which is to be called: HeadPruning\(\)"),
        (lambda: prune(bert(), Importance()), "which is for measure_importance"),
        (lambda: prune(bert(), VocabularyPruning()), "which is for prune_vocabulary"),
        (lambda: prune(bert(), {"heads": 0.5}), "received a dict"),
        (lambda: quantize(bert(), Pruning(heads=0.5)), "which is for prune"),
        (lambda: quantize(bert(), "int8-dynamc"), "did you mean 'int8-dynamic'"),
        (lambda: swap_attention(bert(), "locl"), "did you mean 'local'"),
        (lambda: swap_attention(bert(), Int8()), "which is for quantize"),
        (lambda: attention_error(bert(), ROWS, Int8()), "which is for quantize"),
        (lambda: train(bert(), ROWS, Distillation()), "which is for distill"),
        (lambda: distill(bert(), bert(1), ROWS, Training()), "which is for train"),
        (lambda: distill(bert(), bert(1), ROWS, Linearization()), "which is for linearize"),
        (lambda: distill(bert(), bert(1), ROWS, "respons"), "did you mean 'response'"),
        (lambda: linearize(bert(), ROWS, Distillation()), "which is for distill"),
        (lambda: linearize(bert(), ROWS, "linea"), "did you mean 'linear'"),
        (lambda: evaluate(bert(), "digits", cost=Training()), "which is for train"),
        (lambda: measure_importance(bert(), FFNPruning(ratio=0.5)), "which is for prune"),
        (lambda: prune_vocabulary(bert(), None, ["a"], Int8()), "which is for quantize"),
    ],
)
def test_a_config_of_something_else(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_cost_of_evaluate_is_its_own():
    assert Cost().verb == "evaluate"


@pytest.mark.parametrize("verb", ["train", "distill", "linearize"])
def test_frozen_models_are_not_trained(verb, tmp_path):
    model = bert().requires_grad_(False)
    with pytest.raises(UsageError, match=r"frozen.*requires_grad_\(True\)"):
        VERBS[verb](model, tmp_path)


def test_frozen_models_are_compressed(tmp_path):
    frozen = bert().requires_grad_(False)
    for verb in ("prune", "quantize", "swap_attention", "make_student", "distill-from"):
        VERBS[verb](frozen, tmp_path)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_model_does_not_teach_itself():
    model = bert()
    with pytest.raises(UsageError, match="the same model"):
        distill(model, model, ROWS)
