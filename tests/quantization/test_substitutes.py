"""What stands in for operators of int8 models in `optimize`: how exact it is, and where it is put."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertModel, PreTrainedModel

from effitrans.inference import substitutes
from effitrans.inference.compiling import optimize
from effitrans.inference.substitutes import (
    additive_mask,
    fast_attention,
    fast_exp,
    fast_gelu,
)
from effitrans.quantization import Int8, Int8Static, quantize
from effitrans.quantization.modules.kernels import quantize_rows
from tests.architectures.families import THROUGH_INTERFACE, Family, core_first

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


@TYPES
def test_the_polynomial_is_gelu(dtype: torch.dtype):
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64).to(dtype)
    exact = nn.functional.gelu(x.double())
    error = (fast_gelu(x).double() - exact).abs()
    assert fast_gelu(x).dtype == dtype
    rounding = exact.abs() * torch.finfo(dtype).eps
    assert bool((error <= 5e-5 + 3e-6 * x.double().abs() + rounding).all())
    assert not fast_gelu(torch.zeros(3, dtype=dtype)).any()


def test_the_squared_polynomial_is_the_exponential():
    x = torch.linspace(-40, 0, 400_001, dtype=torch.float64)
    found, exact = fast_exp((x / 8).float()).double(), x.exp()
    assert bool(((found / exact - 1).abs()[x >= -10] < 3.3e-4).all())
    assert bool(((found - exact).abs()[x < -10] < 2e-7).all())
    assert not found[x < -20.001].any()
    assert not fast_exp(torch.tensor([float("-inf"), -1e30])).any()
    assert fast_exp(torch.tensor(float("nan"))).isnan()


def heads(batch: int, heads: int, length: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, heads, size, generator=generator).to(dtype).transpose(1, 2)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@TYPES
@pytest.mark.parametrize("masked", ["no", "bool", "float"])
@pytest.mark.parametrize("shape", [(2, 3, 17, 8), (1, 1, 1, 5), (3, 4, 33, 16)], ids=str)
def test_attention_in_bfloat16(shape: tuple[int, int, int, int], masked: str, dtype: torch.dtype):
    query, key, value = (heads(*shape, dtype=dtype, seed=seed) for seed in range(3))
    batch, _, length, _ = shape
    mask = torch.arange(length) < torch.arange(length, length - batch, -1)[:, None, None, None].clamp_min(1)
    given = {"no": None, "bool": mask, "float": torch.zeros(mask.shape).masked_fill(~mask, -1e9)}[masked]
    expected = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), None if given is None else mask
    )
    found = fast_attention(query, key, value, None if given is None else additive_mask(given))
    assert found.dtype == dtype
    assert relative(found, expected) < 0.01


def test_attention_of_other_lengths_sizes_and_scales():
    query, key, value = heads(2, 3, 5, 8), heads(2, 3, 11, 8, seed=1), heads(2, 3, 11, 4, seed=2)
    bias = heads(2, 3, 5, 11, seed=3).contiguous()
    expected = scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=0.7)
    assert relative(fast_attention(query, key, value, additive_mask(bias), scale=0.7), expected) < 0.01


def test_large_scores_neither_overflow_nor_vanish():
    query, key, value = 300 * heads(2, 3, 9, 8), 300 * heads(2, 3, 9, 8, seed=1), heads(2, 3, 9, 8, seed=2)
    best = (query @ key.transpose(-1, -2)).argmax(-1, keepdim=True)
    found = fast_attention(query, key, value)
    assert relative(found, value.take_along_dim(best, 2)) < 0.01


def test_masked_keys_have_no_part_and_a_query_without_any_gives_zero():
    query, key, value = (heads(1, 2, 6, 4, seed=seed) for seed in range(3))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0] * 6]).bool()[[0, 0, 0, 0, 0, 1]]
    found = fast_attention(query, key, value, additive_mask(mask))
    other = fast_attention(query, key, torch.cat((value[:, :, :4], value[:, :, 4:] * 1000), 2), additive_mask(mask))
    assert torch.equal(found, other)
    assert not found[:, :, 5].any()
    assert found[:, :, :5].all()


def tiny(**options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertModel(BertConfig(**sizes, intermediate_size=64, max_position_embeddings=64, **options)).eval()


def batch(size: int = 2, length: int = 6) -> dict[str, Tensor]:
    ids = torch.arange(size * length).view(size, length) % 60
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that Inductor is given, on a CPU that multiplies bfloat16; they run as they are."""
    torch._dynamo.reset()
    seen: list[torch.fx.GraphModule] = []

    def compile(graph: torch.fx.GraphModule, inputs: list[Any], options: dict) -> Callable[..., Any]:
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(torch._inductor, "compile", compile)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    return seen


@pytest.fixture
def targets(graphs: list[torch.fx.GraphModule]) -> Callable[..., list[Any]]:
    """What the graph of a model calls."""

    def find(model: PreTrainedModel, *shapes: tuple[int, int]) -> list[Any]:
        torch._dynamo.reset()
        fast = optimize(model)
        for shape in shapes or ((2, 6),):
            with torch.inference_mode():
                expected = model(**batch(*shape)).last_hidden_state
            assert relative(fast(**batch(*shape)).last_hidden_state, expected) < 0.05
        return [node.target for node in graphs[-1].graph.nodes]

    return find


@pytest.mark.parametrize("family", core_first())
def test_every_family_is_as_near_to_floating_point(family: Family, graphs: list[torch.fx.GraphModule]):
    if family not in THROUGH_INTERFACE:
        pytest.skip("this version of transformers computes attention in a way of its own")
    original, inputs = family.model(), family.inputs()
    model = quantize(original, Int8())
    if "Seq2Seq" not in family.auto_class:
        inputs.pop("labels")  # transformers logs a warning on the way to some losses, which is no graph
    with torch.inference_mode():
        exact, eager = original(**inputs).logits, model(**inputs).logits
    assert relative(optimize(model)(**inputs).logits, exact) < 1.6 * relative(eager, exact) + 0.01
    called = [node.target for node in graphs[-1].graph.nodes]
    assert quantize_rows in called
    assert fast_attention in called


def test_gelu_is_replaced_in_int8_models_alone(targets: Callable):
    integer, floating = targets(quantize(tiny(), Int8())), targets(tiny())
    assert fast_gelu in integer
    assert nn.functional.gelu not in integer
    assert nn.functional.gelu in floating
    tanh = targets(quantize(tiny(hidden_act="gelu_pytorch_tanh"), Int8()))
    assert nn.functional.gelu in tanh
    assert fast_gelu not in tanh


def test_attention_is_replaced_in_int8_models_alone_and_their_mask_made_once(targets: Callable):
    integer, floating = targets(quantize(tiny(), Int8())), targets(tiny())
    assert integer.count(fast_attention) == 2
    assert integer.count(additive_mask) == 1
    assert scaled_dot_product_attention not in integer
    assert floating.count(scaled_dot_product_attention) == 2


def test_attention_stays_where_the_cpu_does_not_multiply_bfloat16(targets: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert targets(quantize(tiny(), Int8())).count(scaled_dot_product_attention) == 2


def test_longer_inputs_compile_again_with_exact_attention(targets: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(substitutes, "MAX_KEYS", 16)
    model = quantize(tiny(), Int8())
    assert targets(model, (2, 6), (3, 16)).count(fast_attention) == 2
    assert targets(model, (2, 6), (2, 17)).count(scaled_dot_product_attention) == 2


def test_causal_attention_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)

    def attention(x: Tensor) -> Tensor:
        return scaled_dot_product_attention(x, x, x, is_causal=True)

    graph = torch.fx.symbolic_trace(attention).graph
    for node in graph.nodes:
        node.meta["example_value"] = heads(1, 2, 3, 4)
    substitutes.substitute(graph)
    assert scaled_dot_product_attention in [node.target for node in graph.nodes]


def test_queries_keys_and_values_quantize_their_input_once(targets: Callable):
    calibration = [batch(16, 6)]
    assert targets(quantize(tiny(), Int8())).count(quantize_rows) == 2 * 4 + 1, "attention, its output, FFN twice"
    assert targets(quantize(tiny(), Int8Static(), calibration)).count(quantize_rows) == 0


@pytest.mark.slow
def test_compiled_for_real():
    torch._dynamo.reset()
    model = quantize(tiny(), Int8())
    fast = optimize(model)
    for shape in ((2, 6), (1, 1), (5, 40), (1, 64), (32, 33)):
        with torch.inference_mode():
            expected = model(**batch(*shape)).last_hidden_state
        assert relative(fast(**batch(*shape)).last_hidden_state, expected) < 0.05
