"""A teacher whose outputs overflow is named, with its dtype and what to do, before a student learns from them."""

import pytest
import torch

from effitrans import (
    Distillation,
    Linearization,
    UsageError,
    attention_error,
    distill,
    linearize,
)
from effitrans.attention import Local
from tests.training.helpers import assert_same_weights, bert, sentences

STEP = {"max_steps": 1, "batch_size": 4}
ROWS = sentences(8)


def overflowing(dtype: torch.dtype = torch.float16):
    """Finite weights, whose products go beyond float16."""
    model = bert(seed=1).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight.mul_(3e5)
            layer.output.dense.weight.mul_(1e5)
    return model.to(dtype)


@pytest.mark.parametrize("cache", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize("objective", ["response", "logit_mse", "feature"])
def test_distill(objective, cache, tmp_path):
    student = bert()
    extra = {"cache": {"folder": str(tmp_path)}} if cache else {}
    with pytest.raises(
        UsageError, match=r"teacher BertForSequenceClassification gives NaN or infinite .* in float16.*float32"
    ):
        distill(student, overflowing(), ROWS, Distillation(objective=objective, **extra, **STEP))
    assert_same_weights(student, bert())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_another_teacher():
    config = Distillation(teachers={"other": 1.0}, **STEP)
    with pytest.raises(UsageError, match="teacher BertForSequenceClassification gives NaN"):
        distill(bert(), bert(seed=2), ROWS, config, teachers={"other": overflowing()})


def test_the_same_weights_teach_in_float32():
    assert distill(bert(), overflowing(torch.float32), ROWS, Distillation(**STEP)).steps == 1
    assert distill(bert(), overflowing(torch.bfloat16), ROWS, Distillation(**STEP)).steps == 1


def test_linearize():
    with pytest.raises(
        UsageError, match=r"teacher BertForSequenceClassification gives NaN or infinite outputs of .* in float16"
    ):
        linearize(overflowing(), ROWS, Linearization(transfer={"max_steps": 1}, **STEP))


def test_layers_are_not_chosen_by_errors_that_are_not_finite():
    with pytest.raises(UsageError, match=r"layer\.1\.attention\.self gives NaN or infinite values in torch\.float16"):
        attention_error(overflowing(), ROWS, Local(window=2))
