"""Training with weights of few bits: agreement with the packed twin, gradients, the scheme, refusals."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.quantization import QAT, PackedLinear, quantize
from effitrans.quantization.calibration import relative_error
from effitrans.quantization.modules.fake_packed import FakePackedLinear
from effitrans.quantization.schemes.trained.base import convert, prepare
from tests.architectures.families import FAMILIES, logits

BY_NAME = {family.name: family for family in FAMILIES}
BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8])


@BITS
@pytest.mark.parametrize("group_size", [16, None], ids=["groups", "rows"])
@pytest.mark.parametrize("build", [nn.Linear, lambda k, n: Conv1D(n, k)], ids=["linear", "conv1d"])
def test_a_layer_agrees_with_its_packed_twin(build, group_size, bits: int):
    torch.manual_seed(0)
    original, x = build(48, 20), torch.randn(2, 9, 48)
    fake = FakePackedLinear.from_float(original, bits, group_size)
    fake.step.data *= 0.93
    packed = fake.to_integers()
    assert (packed.bits, packed.group_size) == (bits, group_size or 48)
    torch.testing.assert_close(packed(x), fake(x), rtol=1e-5, atol=1e-5)
    assert relative_error([fake(x)], [original(x)]) < {2: 0.75, 3: 0.35, 4: 0.2, 8: 0.1}[bits]


def test_weights_and_steps_have_gradients():
    torch.manual_seed(0)
    layer = FakePackedLinear.from_float(nn.Linear(32, 8), 2, 16)
    layer(torch.randn(4, 32)).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0
    assert layer.step.grad is not None
    assert layer.step.grad.shape == (8, 2)
    assert (layer.step.grad != 0).all()


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_model_trains_and_converts_to_what_it_was(name: str, bits: int, tmp_path: Path):
    family = BY_NAME[name]
    model = family.model()
    config = QAT(bits=bits, group_size=16)
    prepared = prepare(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = model(**family.inputs()).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    checkpoint.record(model, "prepare", config)
    checkpoint.save(model, tmp_path / "fake")
    expected = logits(model, family.inputs())
    assert torch.equal(logits(checkpoint.load_model(tmp_path / "fake", family.auto_class), family.inputs()), expected)
    convert(model, prepared)
    assert any(isinstance(module, PackedLinear) and module.bits == bits for module in model.modules())
    assert not any(isinstance(module, FakePackedLinear) for module in model.modules())
    # Output layers tied to a table round their input to int8, so an activation may fall to the other side.
    assert relative_error([logits(model, family.inputs())], [expected]) < (0.02 if family.tied else 1e-5)


def test_the_scheme_trains_under_the_float_model(tiny_teacher, tiny_task, tiny_tokenizer, tmp_path):
    model = checkpoint.load_model(tiny_teacher, "AutoModelForSequenceClassification")
    config = QAT(bits=2, group_size=32, max_steps=3, batch_size=8)
    small = quantize(model, config, str(tiny_task), processor=tiny_tokenizer)
    assert any(isinstance(module, PackedLinear) for module in small.modules())
    assert [entry["verb"] for entry in checkpoint.history(small)] == ["distill", "quantize"]
    checkpoint.save(small, tmp_path / "model")
    loaded = checkpoint.load_model(tmp_path / "model", "AutoModelForSequenceClassification")
    ids = {"input_ids": torch.tensor([[2, 5, 6, 3]])}
    assert torch.equal(logits(loaded, ids), logits(small, ids))


def test_refusals():
    model = BY_NAME["bert"].model()
    with pytest.raises(UsageError, match=r"qat trains the model and got no data.*rtn"):
        quantize(model, QAT())
    with pytest.raises(UsageError, match="group_size 24 does not divide"):
        prepare(model, QAT(group_size=24))
    with pytest.raises(UsageError, match="qat trains all layers together"):
        QAT.parse({"max_error": 0.1})
