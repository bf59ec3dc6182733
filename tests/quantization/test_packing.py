"""Packed integers: their size, the way there and back, and the product with PyTorch's 4-bit kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from effitrans.quantization import PackedLinear
from effitrans.quantization.modules import packing
from effitrans.quantization.modules.grid import Grid, best_grid, full_range_grid

BITS = (2, 3, 4, 8)
bits_strategy = st.sampled_from(BITS)


@given(bits_strategy, st.integers(1, 5), st.integers(1, 70), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_there_and_back_at_the_true_size(bits: int, rows: int, columns: int, seed: int):
    values = torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))
    packed = packing.pack(values, bits)
    assert packed.dtype == torch.int8
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(packing.unpack(packed, bits, columns), values.to(torch.uint8))


def test_the_stream_of_bits_written_out():
    # 5, 3, 7, 0, 1, 2, 6, 4 in three bits each, lowest first: 101 110 111 000 100 010 011 001 read from the left.
    packed = packing.pack(torch.tensor([[5, 3, 7, 0, 1, 2, 6, 4]]), 3)
    assert packed.view(torch.uint8).tolist() == [[0b11011101, 0b00010001, 0b10011001]]


def weight(rows: int = 32, columns: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def packed_layer(bits: int, group_size: int, w: torch.Tensor, bias: bool = True) -> PackedLinear:
    grid = full_range_grid(w, bits, group_size)
    return PackedLinear.from_integers(grid.round(w), grid, nn.Parameter(torch.randn(len(w))) if bias else None)


@pytest.mark.parametrize("bits", BITS)
def test_the_bytes_are_what_the_bits_say(bits: int):
    layer = packed_layer(bits, 32, weight(64, 128), bias=False)
    stored = {name: tensor.numel() * tensor.element_size() for name, tensor in layer.state_dict().items()}
    assert stored == {"weight": 64 * 128 * bits // 8, "scale": 64 * 4 * 2, "zero_point": 64 * -(-4 * bits // 8)}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [8, 32, 128], ids=lambda g: f"g{g}")
def test_a_group_is_within_half_a_step(bits: int, group: int):
    w = weight()
    grid = full_range_grid(w, bits, group)
    error = (grid.values(grid.round(w)) - w).abs()
    # The zero point is rounded too, so the ends of the range may be half a step further.
    assert bool((error <= 1.001 * grid.spread()[0]).all())
    assert float(error.mean()) < 0.3 * float(grid.spread()[0].mean())


def test_zero_stays_zero_and_signs_do_not_matter():
    w = weight()
    w[:, ::3] = 0
    for shifted in (w, w.abs(), -w.abs()):
        grid = full_range_grid(shifted, 3, 32)
        assert not grid.values(grid.round(shifted))[shifted == 0].any()
    grid = full_range_grid(torch.zeros(4, 32), 4, 32)
    assert not grid.values(grid.round(torch.zeros(4, 32))).any()


@given(st.integers(-60, 60), bits_strategy)
@settings(max_examples=60, deadline=None)
def test_a_power_of_two_only_moves_the_scale(exponent: int, bits: int):
    w = weight(4, 32)
    grid, moved = (full_range_grid(x, bits, 16) for x in (w, w * 2.0**exponent))
    assert torch.equal(grid.zero_NG, moved.zero_NG)
    assert torch.equal(grid.scale_NG.float() * 2.0**exponent, moved.scale_NG.float())
    assert torch.equal(grid.round(w), moved.round(w * 2.0**exponent))


def test_the_best_grid_is_never_worse_than_the_full_range():
    w, importance = weight(), torch.rand(128, generator=torch.Generator().manual_seed(1)) ** 4
    for bits in BITS:
        errors = []
        for grid in (best_grid(w, bits, 32, importance), full_range_grid(w, bits, 32)):
            error = (grid.values(grid.round(w)) - w).square() * importance
            errors.append(error.reshape(32, -1, 32).sum(-1))
        assert bool((errors[0] <= errors[1]).all())
        assert bits > 3 or float(errors[0].sum()) < 0.95 * float(errors[1].sum())


CASES = [
    pytest.param(4, 32, 32, 128, id="int4-kernel"),
    pytest.param(4, 64, 48, 64, id="int4-kernel-one-group"),
    pytest.param(4, 32, 31, 64, id="int4-odd-rows"),
    pytest.param(4, 16, 32, 64, id="int4-small-groups"),
    pytest.param(3, 16, 7, 48, id="int3"),
    pytest.param(2, 8, 5, 24, id="int2"),
    pytest.param(8, 11, 5, 33, id="int8-odd"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("bits", "group", "rows", "columns"), CASES)
def test_the_product_is_that_of_the_dequantized_weight(bits, group, rows, columns, dtype):
    layer = packed_layer(bits, group, weight(rows, columns))
    x = torch.randn(2, 3, columns)
    expected = x @ layer.dequantized().t() + layer.bias
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    y = layer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance * 10)
    assert layer.scale.dtype == torch.bfloat16
    assert layer(x[:0].to(dtype)).shape == (0, 3, rows)


def test_the_kernel_is_used_where_it_fits(monkeypatch):
    calls = []
    original = packing.int4_product
    monkeypatch.setattr(
        "effitrans.quantization.modules.packed.int4_product", lambda *a: calls.append(1) or original(*a)
    )
    few, many = torch.randn(2, 64).bfloat16(), torch.randn(packing.INT4_ROWS + 1, 64).bfloat16()
    layer = packed_layer(4, 32, weight(16, 64)).bfloat16()
    layer(few)
    assert len(calls) == int(packing.int4_kernel_fits(16, 64, 32, "cpu"))
    layer(many)
    packed_layer(4, 32, weight(16, 64))(few.float())
    packed_layer(4, 32, weight(17, 64)).bfloat16()(few)
    packed_layer(3, 32, weight(16, 64)).bfloat16()(few)
    assert len(calls) <= 1


def test_the_kernels_copy_of_the_weight_follows_the_weight():
    first, second = (packed_layer(4, 32, weight(16, 64, seed=seed)).bfloat16() for seed in (0, 1))
    x = torch.randn(2, 64).bfloat16()
    first(x)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))


def test_built_from_its_spec():
    layer = packed_layer(3, 16, weight(8, 48))
    layer.factor = torch.rand(48)
    with torch.device("meta"):
        empty = PackedLinear.from_spec(layer.spec(), nn.Linear(48, 8))
    shapes = [{name: (t.shape, t.dtype) for name, t in m.state_dict().items()} for m in (layer, empty)]
    assert shapes[0] == shapes[1]


def test_rows_of_a_grid_are_picked():
    w = weight(4, 32)
    a, b = full_range_grid(w, 4, 16), full_range_grid(2 * w, 4, 16)
    picked = a.rows(torch.tensor([True, False, True, False]), b)
    assert isinstance(picked, Grid)
    assert torch.equal(picked.scale_NG[0], a.scale_NG[0])
    assert torch.equal(picked.scale_NG[1], b.scale_NG[1])


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating point"):
        packed_layer(4, 32, weight(16, 64))(torch.ones(1, 64, dtype=torch.int8))
