"""Fake quantization: gradients, agreement with the integer twins, training, conversion, saving."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.quantization import Int8Embedding, Int8Linear, Int8QAT, quantize
from effitrans.quantization.calibration import relative_error
from effitrans.quantization.modules.fake import FakeQuantEmbedding, FakeQuantLinear, learned_grid
from effitrans.quantization.modules.kernels import fixed_grid
from effitrans.quantization.schemes.trained.base import convert, prepare
from tests.architectures.families import FAMILIES, logits
from tests.quantization.calibration import batches_for

BY_NAME = {family.name: family for family in FAMILIES}
MODES = pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
STEPS = pytest.mark.parametrize("learned", [False, True], ids=["largest", "learned"])


def test_rounding_has_the_gradient_of_the_identity_inside_and_none_outside():
    x = torch.tensor([0.3, -0.7, 1.26, 900.0, -900.0], requires_grad=True)
    y = learned_grid(x, torch.tensor(0.5), 0.0, -127, 127)
    assert y.tolist() == [0.5, -0.5, 1.5, 63.5, -63.5]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 0, 0]


def test_the_gradient_of_the_step_is_that_of_the_paper():
    torch.manual_seed(0)
    x, step = torch.randn(4, 6) * 3, torch.rand(4, 1, requires_grad=True)
    upstream = torch.randn(4, 6)
    (learned_grid(x, step, 0.0, -7, 7) * upstream).sum().backward()
    ratio = (x / step).detach()
    per_value = torch.where(ratio <= -7, -7.0, torch.where(ratio >= 7, 7.0, torch.round(ratio) - ratio))
    expected = (per_value * upstream).sum(1, keepdim=True) / (6 * 7) ** 0.5
    torch.testing.assert_close(step.grad, expected)


@MODES
@STEPS
@pytest.mark.parametrize("build", [nn.Linear, lambda k, n: Conv1D(n, k)], ids=["linear", "conv1d"])
def test_a_layer_agrees_with_its_integer_twin(build, learned: bool, static: bool):
    torch.manual_seed(0)
    original, x = build(48, 20), torch.randn(2, 9, 48)
    grid = fixed_grid(-4.0, 4.5) if static else None
    fake = FakeQuantLinear.from_float(original, learned=learned, input_grid=grid)
    if learned:
        fake.step.data *= 0.9
    integer = fake.to_integers()
    assert isinstance(integer, Int8Linear)
    assert (integer.input_scale is not None) is static
    torch.testing.assert_close(integer(x), fake(x), rtol=1e-5, atol=1e-5)
    assert relative_error([fake(x)], [original(x)]) < 0.06


def test_a_table_agrees_with_its_integer_twin():
    torch.manual_seed(0)
    table, ids = nn.Embedding(11, 6, padding_idx=2), torch.tensor([[1, 2, 10]])
    fake = FakeQuantEmbedding.from_float(table)
    assert isinstance(fake.to_integers(), Int8Embedding)
    assert torch.equal(fake.to_integers()(ids), fake(ids))
    fake(ids).sum().backward()
    assert table.weight.grad[1].any()
    assert not table.weight.grad[2].any()


@MODES
@STEPS
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_model_trains_and_converts_to_what_it_was(name: str, learned: bool, static: bool, tmp_path: Path):
    family = BY_NAME[name]
    model, batches = family.model(), batches_for(family)
    config = Int8QAT(
        activations="static" if static else "dynamic", steps="learned" if learned else "largest", observer="minmax"
    )
    prepared = prepare(model, config, batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**family.inputs()).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    if learned:
        steps = [m.step for m in model.modules() if isinstance(m, FakeQuantLinear) and m.step is not None]
        assert steps
        assert all(step.grad is not None for step in steps)
    checkpoint.record(model, "prepare", config)
    checkpoint.save(model, tmp_path / "fake")
    expected = logits(model, family.inputs())
    fake = checkpoint.load_model(tmp_path / "fake", family.auto_class)
    assert torch.equal(logits(fake, family.inputs()), expected)
    assert not fake.is_quantized
    convert(model, prepared)
    integer = [m for m in model.modules() if isinstance(m, Int8Linear | Int8Embedding)]
    assert len(integer) == len(prepared.replacements)
    # An activation that sits between two integers may fall to the other side: a step in one value, not more.
    assert relative_error([logits(model, family.inputs())], [expected]) < 0.02
    if family.tied:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_the_scheme_trains_under_the_float_model(activations, tiny_teacher, tiny_task, tiny_tokenizer, tmp_path):
    model = checkpoint.load_model(tiny_teacher, "AutoModelForSequenceClassification")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = Int8QAT(max_steps=3, batch_size=8, activations=activations)
    small = quantize(model, config, str(tiny_task), processor=tiny_tokenizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    layers = [m for m in small.modules() if isinstance(m, Int8Linear)]
    assert layers
    assert all((layer.input_scale is not None) == (activations == "static") for layer in layers)
    assert not any(isinstance(m, FakeQuantLinear) for m in small.modules())
    assert [entry["verb"] for entry in checkpoint.history(small)] == ["distill", "quantize"]
    checkpoint.save(small, tmp_path / "model")
    loaded = checkpoint.load_model(tmp_path / "model", "AutoModelForSequenceClassification")
    ids = {"input_ids": torch.tensor([[2, 5, 6, 3]])}
    with torch.no_grad():
        assert torch.equal(loaded(**ids).logits, small(**ids).logits)


def test_mixed_precision_keeps_the_steps():
    layer = FakeQuantLinear.from_float(nn.Linear(8, 4), learned=True, input_grid=fixed_grid(-1.0, 1.0))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(3, 8, dtype=torch.bfloat16))
    y.float().sum().backward()
    assert layer.step.grad.dtype == torch.float32
    assert layer.input_step.grad is not None


def test_refusals():
    family = BY_NAME["bert"]
    with pytest.raises(UsageError, match="int8-qat trains the model and got no data"):
        quantize(family.model(), Int8QAT())
    with pytest.raises(UsageError, match="leave max_error and max_drop out"):
        Int8QAT.parse({"max_error": 0.1})
    with pytest.raises(UsageError, match="unknown observer"):
        Int8QAT.parse({"observer": "median"})


def test_an_int8_model_cannot_be_trained_and_the_remedy_is_named():
    from effitrans.training import train

    small = quantize(BY_NAME["bert"].model())
    with pytest.raises(UsageError, match="quantize last"):
        train(small, [])
