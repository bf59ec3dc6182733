"""The int8 kernels against their plain twins."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from effitrans.quantization.modules import kernels, reference

SHAPES = [(1, 1, 1), (1, 64, 24), (2, 7, 5), (3, 33, 17), (16, 8, 8), (17, 130, 3), (40, 96, 64)]
ids = [f"M{m}-K{k}-N{n}" for m, k, n in SHAPES]


def rows(m: int, k: int, seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes, skewed, some of one sign, with zero rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator) + torch.randn(m, 1, generator=generator)
    x = x * 10 ** (4 * torch.rand(m, 1, generator=generator) - 2)
    x[::4] = x[::4].abs()
    x[3::5] = 0
    return x


def int8_matrix(m: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("m", "k", "n"), SHAPES, ids=ids)
def test_the_product_is_exact(m: int, k: int, n: int):
    a, b = int8_matrix(m, k), int8_matrix(n, k, 1)
    product = kernels.integer_product(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), reference.integer_product(a, b))


@pytest.mark.parametrize("value", [-128, 127], ids=["lowest", "highest"])
def test_the_product_does_not_saturate(value: int):
    a = torch.full((5, 1536), value, dtype=torch.int8)
    b = torch.full((9, 1536), -127, dtype=torch.int8)
    assert torch.equal(kernels.integer_product(a, b).long(), reference.integer_product(a, b))


@pytest.mark.parametrize("layout", ["rows of a wider matrix", "every second row", "transposed", "transposed weight"])
def test_the_product_takes_any_layout(layout: str):
    wide = int8_matrix(24, 40)
    a = {"rows of a wider matrix": wide[:, 3:35], "every second row": wide[::2, :32], "transposed": wide[:, :32].t()}
    a_MK = a.get(layout, wide[:, :32])
    b_NK = int8_matrix(a_MK.shape[1], 6, 1).t() if layout == "transposed weight" else int8_matrix(6, a_MK.shape[1], 1)
    assert torch.equal(kernels.integer_product(a_MK, b_NK).long(), reference.integer_product(a_MK, b_NK))


@pytest.mark.parametrize("stride", [0, 1, 5])
def test_the_stride_of_a_single_row_means_nothing(stride: int):
    a, b = int8_matrix(1, 32), int8_matrix(48, 32, 1)
    assert torch.equal(
        kernels.integer_product(a.as_strided((1, 32), (stride, 1)), b).long(), reference.integer_product(a, b)
    )


def test_the_product_without_a_trusted_kernel_is_exact_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "fast_product_is_exact", lambda device_type: False)
    a, b = int8_matrix(5, 1536), int8_matrix(7, 1536, 1)
    product = kernels.integer_product(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), reference.integer_product(a, b))


def test_a_device_without_the_kernel_is_not_trusted(monkeypatch: pytest.MonkeyPatch):
    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.double() @ b.double()).clamp(-32768, 32767).to(torch.int32)

    def missing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    for kernel in (saturating, missing):
        kernels._multiplies_exactly.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "_int_mm", kernel)
            assert not kernels.fast_product_is_exact("cpu")
    kernels._multiplies_exactly.cache_clear()


@pytest.mark.parametrize(("m", "k", "n"), SHAPES, ids=ids)
def test_rows_are_quantized_like_the_reference(m: int, k: int, n: int):
    x = rows(m, k)
    for ours, plain in zip(kernels.quantize_rows(x), reference.quantize_rows(x), strict=True):
        assert ours.dtype == plain.dtype
        assert torch.equal(ours, plain)


@pytest.mark.parametrize(("m", "k", "n"), SHAPES, ids=ids)
def test_channels_are_quantized_like_the_reference(m: int, k: int, n: int):
    for ours, plain in zip(kernels.quantize_channels(rows(n, k)), reference.quantize_channels(rows(n, k)), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES, ids=ids)
def test_the_linear_layer_equals_the_reference(m: int, k: int, n: int, bias: bool, dtype: torch.dtype):
    x = rows(m, k).to(dtype)
    weight, scale = kernels.quantize_channels(rows(n, k, 1))
    bias_N = torch.randn(n, generator=torch.Generator().manual_seed(2)).to(dtype) if bias else None
    ours = kernels.int8_linear(x, weight, scale, weight.sum(1, dtype=torch.int32), bias_N)
    expected = reference.int8_linear(x, weight, scale, bias_N)
    assert ours.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    else:
        assert torch.equal(ours.isfinite(), expected.to(dtype).isfinite())
        torch.testing.assert_close(ours, expected.to(dtype), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (1,), (2, 3), (2, 1, 4)], ids=str)
def test_any_leading_dimensions(leading: tuple[int, ...]):
    weight, scale = kernels.quantize_channels(rows(5, 8, 1))
    x = torch.randn(*leading, 8)
    y = kernels.int8_linear(x, weight, scale, weight.sum(1, dtype=torch.int32))
    assert y.shape == (*leading, 5)
    if x.numel():
        torch.testing.assert_close(y.view(-1, 5), reference.int8_linear(x.view(-1, 8), weight, scale, None))


finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
matrix = st.integers(1, 9).flatmap(lambda k: st.lists(st.lists(finite, min_size=k, max_size=k), min_size=1, max_size=5))


@given(matrix)
@settings(max_examples=150, deadline=None)
def test_every_entry_is_within_half_a_step(values: list[list[float]]):
    x = torch.tensor(values)
    q, scale, zero_point = kernels.quantize_rows(x)
    back = scale.double() * (q.double() - zero_point.double())
    # Half a step, half another for the rounding of the zero point at the ends, and the rounding of float32.
    assert bool(((back - x.double()).abs() <= 1.0001 * scale.double()).all())
    inner = (q > -128) & (q < 127)
    assert bool(((back - x.double()).abs() <= 0.5001 * scale.double())[inner].all())


@given(matrix)
@settings(max_examples=100, deadline=None)
def test_zero_is_exact(values: list[list[float]]):
    x = torch.tensor(values)
    x[:, 0] = 0
    q, _, zero_point = kernels.quantize_rows(x)
    assert torch.equal(q[:, :1].to(torch.int32), zero_point)


@given(matrix, st.integers(-20, 20))
@settings(max_examples=100, deadline=None)
def test_a_power_of_two_only_moves_the_scale(values: list[list[float]], exponent: int):
    x = torch.tensor(values)
    x[x.abs() < 2.0**-60] = 0
    q, scale, zero_point = kernels.quantize_rows(x)
    q2, scale2, zero_point2 = kernels.quantize_rows(x * 2.0**exponent)
    assert torch.equal(q, q2)
    assert torch.equal(zero_point, zero_point2)
    used = (x != 0).any(-1)
    assert torch.equal(scale[used] * 2.0**exponent, scale2[used])


@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_rows_do_not_see_each_other(m: int, k: int, n: int, seed: int):
    x = rows(m, k, seed)
    weight, scale = kernels.quantize_channels(rows(n, k, seed + 1))
    sums = weight.sum(1, dtype=torch.int32)
    together = kernels.int8_linear(x, weight, scale, sums)
    alone = torch.cat([kernels.int8_linear(row[None], weight, scale, sums) for row in x])
    assert torch.equal(together, alone)


def test_a_zero_row_gives_the_bias():
    weight, scale = kernels.quantize_channels(rows(5, 8, 1))
    bias = torch.randn(5)
    y = kernels.int8_linear(torch.zeros(3, 8), weight, scale, weight.sum(1, dtype=torch.int32), bias)
    assert torch.equal(y, bias.expand(3, 5))


def test_the_largest_values_do_not_overflow():
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[largest, -largest, 0.0, largest / 2]])
    q, scale, zero_point = kernels.quantize_rows(x)
    assert bool(scale.isfinite())
    torch.testing.assert_close(scale.double() * (q - zero_point) / largest, (x / largest).double(), rtol=0, atol=0.004)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_value_is_seen_in_its_row_and_in_no_other(bad: float):
    x = rows(3, 8)
    x[1, 4] = bad
    weight, scale = kernels.quantize_channels(rows(5, 8, 1))
    y = kernels.int8_linear(x, weight, scale, weight.sum(1, dtype=torch.int32))
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


def test_the_widest_layer_fits_int32():
    k = kernels.MAX_IN_FEATURES
    x = torch.zeros(1, k)
    x[0] = 1
    weight = torch.full((1, k), 127, dtype=torch.int8)
    y = kernels.int8_linear(x, weight, torch.ones(1), weight.sum(1, dtype=torch.int32))
    torch.testing.assert_close(y, torch.full((1, 1), 127.0 * k))


def test_embedding_rows():
    table = rows(6, 10)
    weight, scale = kernels.quantize_channels(table)
    ids_BL = torch.tensor([[0, 5], [3, 3]])
    found = kernels.int8_embedding(ids_BL, weight, scale, torch.float32)
    assert torch.equal(found, weight[ids_BL].float() * scale[ids_BL][..., None])
    step = table.abs().amax(1)[ids_BL][..., None] / 127
    assert bool(((found - table[ids_BL]).abs() <= 0.501 * step).all())
