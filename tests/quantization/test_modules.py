"""The modules that hold int8 weights."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from effitrans.quantization import Int8Embedding, Int8Linear
from effitrans.quantization.modules import reference


def conv1d(inputs: int, outputs: int) -> Conv1D:
    layer = Conv1D(outputs, inputs)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("build", [nn.Linear, conv1d], ids=["linear", "conv1d"])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 24), (13, 7), (1, 1)], ids=["even", "odd", "one"])
def test_it_equals_the_reference(build, inputs: int, outputs: int):
    torch.manual_seed(0)
    original = build(inputs, outputs)
    layer = Int8Linear.from_float(original)
    x = torch.randn(2, 3, inputs)
    weight_NK = original.weight.t() if isinstance(original, Conv1D) else original.weight
    q_NK, scale_N = reference.quantize_channels(weight_NK.detach())
    assert torch.equal(layer.weight, q_NK)
    assert layer.weight.is_contiguous()
    assert torch.equal(layer.scale, scale_N)
    expected = reference.int8_linear(x.view(-1, inputs), q_NK, scale_N, original.bias.detach())
    torch.testing.assert_close(layer(x).view(-1, outputs), expected, rtol=1e-5, atol=1e-5)


def test_the_error_of_a_layer_is_small():
    torch.manual_seed(0)
    original, x = nn.Linear(384, 200), torch.randn(50, 384)
    exact = original(x)
    assert (Int8Linear.from_float(original)(x) - exact).norm() / exact.norm() < 0.01


def test_what_is_stored():
    layer = Int8Linear.from_float(nn.Linear(16, 24))
    assert {name: tensor.dtype for name, tensor in layer.state_dict().items()} == {
        "weight": torch.int8,
        "scale": torch.float32,
        "weight_sum": torch.int32,
        "bias": torch.float32,
    }
    assert sum(parameter.numel() for parameter in layer.parameters()) == 24 * 16 + 24
    table = Int8Embedding.from_float(nn.Embedding(10, 6, padding_idx=2))
    assert {name: tensor.dtype for name, tensor in table.state_dict().items()} == {
        "weight": torch.int8,
        "scale": torch.float32,
    }
    assert not table(torch.tensor([2])).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_cast_moves_neither_weight_nor_scale(dtype: torch.dtype):
    linear, table = Int8Linear.from_float(nn.Linear(16, 24)), Int8Embedding.from_float(nn.Embedding(10, 6))
    scales = linear.scale.clone(), table.scale.clone()
    linear.to(dtype), table.to(dtype)
    assert linear.weight.dtype == table.weight.dtype == torch.int8
    assert torch.equal(linear.scale, scales[0])
    assert torch.equal(table.scale, scales[1])
    assert linear.bias.dtype == dtype
    assert linear(torch.randn(2, 16, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_type_of_the_model_is_kept(dtype: torch.dtype):
    linear = Int8Linear.from_float(nn.Linear(16, 24, dtype=dtype))
    table = Int8Embedding.from_float(nn.Embedding(10, 16, dtype=dtype))
    vectors = table(torch.tensor([[1, 2, 9]]))
    assert vectors.dtype == dtype
    assert linear(vectors).dtype == dtype


def test_the_scale_moves_with_the_module():
    layer = Int8Linear.from_float(nn.Linear(16, 24)).to("meta")
    assert layer.scale.is_meta
    assert layer.to_empty(device="cpu").scale.dtype == torch.float32


def test_built_from_its_spec():
    originals = [nn.Linear(5, 3), nn.Linear(5, 3, bias=False, dtype=torch.bfloat16), nn.Embedding(7, 3, padding_idx=1)]
    for original in originals:
        kind = Int8Embedding if isinstance(original, nn.Embedding) else Int8Linear
        module = kind.from_float(original)  # type: ignore[arg-type]
        with torch.device("meta"):
            empty = kind.from_spec(module.spec(), original)
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()}
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in empty.state_dict().items()} == shapes
        assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert empty.padding_idx == 1  # type: ignore[union-attr]


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating point"):
        Int8Linear.from_float(nn.Linear(4, 4))(torch.ones(1, 4, dtype=torch.int8))


def test_they_say_what_they_are():
    assert repr(Int8Linear(3, 2, bias=False)) == "Int8Linear(in_features=3, out_features=2, bias=False)"
    assert repr(Int8Embedding(7, 2)) == "Int8Embedding(7, 2, padding_idx=None)"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("limits", [None, (-3.0, 3.0)], ids=["dynamic", "static"])
def test_a_bad_entry_spoils_its_row_and_no_other(bad: float, limits):
    torch.manual_seed(0)
    layer = Int8Linear.from_float(nn.Linear(16, 8), input_range=limits)
    x = torch.randn(3, 4, 16)
    right = layer(x)
    x[1, 2, 5] = bad
    y = layer(x)
    assert not y[1, 2].isfinite().any()
    y[1, 2] = right[1, 2]
    assert torch.equal(y, right)
