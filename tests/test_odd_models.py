"""Models in unusual states: every verb gives what it gives for the same model in its usual state, and puts it back."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from effitrans import (
    Distillation,
    HeadPruning,
    HiddenPruning,
    Importance,
    L0Pruning,
    LayerPruning,
    Linearization,
    Sparsity,
    Training,
    attention_error,
    distill,
    evaluate,
    linearize,
    make_student,
    measure_importance,
    prune,
    quantize,
    swap_attention,
    train,
)
from effitrans.attention import Local
from effitrans.checkpoint import load_model, load_processor, save
from effitrans.quantization import GPTQ, Int8QAT, Int8Smooth, Int8Static
from tests.training.helpers import bert, sentences

DATA = {"train": sentences(24), "validation": sentences(4, seed=1)}
STEP = {"max_steps": 2, "batch_size": 4}
STATES = {"response": 1, "feature": 1, "relation": 1}


VERBS = {
    "train": lambda model: train(model, DATA, Training(**STEP)).model,
    "distill": lambda model: distill(model, bert(seed=1), DATA, Distillation(objective=STATES, **STEP)).model,
    "distill-from": lambda model: (
        distill(bert(seed=1, num_hidden_layers=1), model, DATA, Distillation(objective=STATES, **STEP)).model
    ),
    "linearize": lambda model: (
        linearize(model, DATA, Linearization(transfer={"max_steps": 1}, layers="best:1", **STEP)).model
    ),
    "make_student": lambda model: make_student(model, "layers=1,hidden=16"),
    "heads-taylor": lambda model: prune(model, HeadPruning(ratio=0.5, method="taylor"), DATA["train"]),
    "hidden": lambda model: prune(model, HiddenPruning(ratio=0.5)),
    "layers-wanda": lambda model: prune(
        model, LayerPruning(keep=1, layer_choice="importance", method="wanda"), DATA["train"]
    ),
    "sparsity-wanda": lambda model: prune(model, Sparsity(sparsity=0.5, method="wanda"), DATA["train"]),
    "l0": lambda model: prune(
        model, L0Pruning(heads=0.5, tolerance=0.9, gate_learning_rate=1.0, **STEP), DATA["train"]
    ),
    "int8": lambda model: quantize(model),
    "int8-smooth": lambda model: quantize(model, Int8Smooth(), DATA["train"]),
    "int8-static": lambda model: quantize(model, Int8Static(smooth=False), DATA["train"]),
    "int8-qat": lambda model: quantize(model, Int8QAT(**STEP), DATA["train"]),
    "gptq": lambda model: quantize(model, GPTQ(group_size=16), DATA["train"]),
    "swap": lambda model: swap_attention(model, Local(window=2)),
}
"""Name -> what the verb makes of a model."""

IN_PLACE = ("train", "distill")


@dataclass
class Richer(SequenceClassifierOutput):
    """An output with one field more."""

    pooled: Tensor | None = None


class Custom(BertForSequenceClassification):
    """A head whose forward pass gives more than the usual."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return Richer(**output, pooled=output.logits.mean()) if isinstance(output, ModelOutput) else output


def tuples_in_training() -> PreTrainedModel:
    model = bert(return_dict=False).train()
    model.bert.encoder.layer[0].eval()
    return model


def checkpointed_with_hidden_states() -> PreTrainedModel:
    model = bert(output_hidden_states=True).eval()
    model.gradient_checkpointing_enable()
    return model


def custom() -> PreTrainedModel:
    model = bert().eval()
    model.__class__ = Custom
    return model


ODD = {make.__name__: make for make in (tuples_in_training, checkpointed_with_hidden_states, custom)}


def state(model: PreTrainedModel) -> dict[str, Any]:
    """What a verb that makes a copy may not change."""
    modules = dict(model.named_modules())
    return {
        "training": {name: module.training for name, module in modules.items()},
        "checkpointing": {name: getattr(module, "gradient_checkpointing", None) for name, module in modules.items()},
        "learning": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        # transformers' own loss fills in the problem_type when it is first computed
        "config": {name: value for name, value in model.config.to_dict().items() if name != "problem_type"},
    }


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    modes = {module: module.training for module in model.modules()}
    found = model.eval()(input_ids=torch.arange(5, 25).view(2, 10), return_dict=True).logits
    for module, mode in modes.items():
        module.training = mode
    return found


@cache
def usual(verb: str) -> Tensor:
    return logits(VERBS[verb](bert().eval()))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_on_an_odd_model(verb, odd, tmp_path):
    model = ODD[odd]()
    before, weights = state(model), logits(model)
    result = VERBS[verb](model)
    torch.testing.assert_close(logits(result), usual(verb), rtol=1e-5, atol=1e-6)
    after = state(model)
    if verb != "distill-from":
        for name in ("return_dict", "output_hidden_states"):
            assert getattr(result.config, name) == getattr(model.config, name) == before["config"][name]
    if verb in IN_PLACE:
        assert not any(after["training"].values())
        same = ("checkpointing", "learning")
        assert {name: after[name] for name in same} == {name: before[name] for name in same}
        return
    assert after == before
    assert torch.equal(logits(model), weights)
    if verb in RELOADED and odd != "custom":
        save(result, tmp_path / "model")
        loaded = load_model(tmp_path / "model", None)
        assert torch.equal(logits(loaded), logits(result))
        assert loaded.config.return_dict == model.config.return_dict


RELOADED = ("heads-taylor", "int8", "swap")


def test_measuring_leaves_an_odd_model_alone():
    model = tuples_in_training()
    before = state(model)
    scores = measure_importance(model, Importance(method="taylor"), DATA["train"])
    errors = attention_error(model, DATA["train"], "local")
    assert state(model) == before
    usual = measure_importance(bert().eval(), Importance(method="taylor"), DATA["train"])
    assert all(torch.allclose(scores.values[name], values) for name, values in usual.values.items())
    assert [entry.error for entry in errors] == [
        entry.error for entry in attention_error(bert(), DATA["train"], "local")
    ]


def test_evaluate_a_model_of_tuples(tiny_teacher, tiny_task, tmp_path):
    usual = load_model(tiny_teacher, None)
    usual.config.return_dict = False
    tokenizer = load_processor(tiny_teacher)
    save(usual, tmp_path / "tuples", tokenizer)
    usual.train()
    scored = [
        evaluate(source, tiny_task, baseline=tiny_teacher, cost=None) for source in (tiny_teacher, tmp_path / "tuples")
    ]
    scored.append(evaluate(usual, tiny_task, processor=tokenizer, baseline=tmp_path / "tuples", cost=None))
    assert scored[0].quality == scored[1].quality == scored[2].quality
    assert [record.fidelity.kl for record in scored] == [0, 0, 0]
    assert usual.training
    assert usual.config.return_dict is False
