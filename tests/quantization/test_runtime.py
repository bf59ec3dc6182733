"""`optimize`: how often it compiles, that it computes the same, and what it refuses.

Most tests replace Inductor by a backend that runs the captured graph as it is: what is captured, how often, and what
is checked are then tested in seconds. The slow tests compile for real.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.exc import InvalidCxxCompiler
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from effitrans.errors import UsageError, WrongResult
from effitrans.inference import compiling
from effitrans.inference.compiling import optimize
from effitrans.quantization import Int8, quantize
from tests.architectures.families import FAMILIES, THROUGH_INTERFACE, Family, core_first


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that were captured; nothing is compiled."""
    torch._dynamo.reset()
    captured: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        captured.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "_backend", lambda integer: backend)
    return captured


def tiny(layers: int = 2, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        **options,
    )
    return BertForSequenceClassification(config).eval()


def batch(size: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, length, dtype=torch.long)
    mask[1::2, length // 2 :] = 0
    return {"input_ids": torch.randint(5, 60, (size, length), generator=generator), "attention_mask": mask}


SHAPES = [(8, 21), (1, 33), (2, 5), (3, 3), (32, 32), (1, 7), (8, 64), (1, 64), (5, 40), (1, 21), (13, 11), (7, 2)]


@pytest.mark.parametrize("integer", [True, False], ids=["int8", "float"])
def test_two_graphs_serve_all_shapes(graphs: list, integer: bool):
    model = quantize(tiny(), Int8()) if integer else tiny()
    fast = optimize(model)
    for shape in SHAPES:
        inputs = batch(*shape)
        with torch.no_grad():
            torch.testing.assert_close(fast(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 2, "one for single examples and one for batches"


def test_padding_is_left_out_and_batches_without_any_compile_apart(graphs: list):
    fast = optimize(quantize(tiny(), Int8()).base_model)
    padded, full = batch(4, 12), batch(4, 12)
    full["attention_mask"] = torch.ones_like(full["attention_mask"])
    assert (fast(**padded).last_hidden_state[padded["attention_mask"] == 0] == 0).all()
    assert (fast(**full).last_hidden_state.abs().amax(-1) > 0).all()
    assert len(graphs) == 2


def test_what_the_config_asks_for_later_is_given(graphs: list):
    model = tiny()
    fast = optimize(model)
    model.config.output_hidden_states = True
    assert len(fast(**batch(4, 12)).hidden_states) == 3


def test_an_optimized_model_is_optimized(graphs: list):
    fast = optimize(tiny())
    assert optimize(fast) is fast


def test_equal_batch_size_and_length_at_first_cost_one_graph_more(graphs: list):
    fast = optimize(quantize(tiny(), Int8()))
    for shape in [(9, 9), *SHAPES]:
        fast(**batch(*shape))
    assert len(graphs) <= 3


def test_models_of_one_class_do_not_share_compiled_code(graphs: list):
    models = [tiny(layers) for layers in (1, 2, 3)] + [quantize(tiny(2), Int8())]
    fast = [optimize(model) for model in models]
    for inputs in (batch(4, 9), batch(3, 12), batch(4, 9)):
        for model, compiled in zip(models, fast, strict=True):
            with torch.no_grad():
                torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert len(graphs) == len(models)


def test_the_model_is_untouched_and_the_result_is_a_model(graphs: list, tmp_path):
    model = quantize(tiny(), Int8())
    before = dict(vars(model))
    fast = optimize(model)
    fast(**batch(2, 6))
    assert dict(vars(model)) == before
    assert not any(module._forward_hooks for module in model.modules())
    assert type(fast) is type(model)
    assert fast.config is model.config
    assert fast.num_parameters() == model.num_parameters()
    output = fast(**batch(2, 6))
    assert output.logits.is_inference()
    fast.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_another_kind_of_call_compiles_again(graphs: list):
    fast = optimize(tiny())
    inputs = batch(3, 8)
    assert fast(**inputs).loss is None
    assert fast(**inputs, labels=torch.tensor([0, 1, 0])).loss.isfinite()
    assert len(fast(**inputs, output_hidden_states=True).hidden_states) == 3
    assert isinstance(fast(**inputs, return_dict=False), tuple)
    assert len(graphs) == 4


@pytest.mark.parametrize("family", core_first())
def test_every_family_compiles_and_agrees(family: Family, graphs: list):
    if family not in THROUGH_INTERFACE:
        pytest.skip("this version of transformers copies the config on the way, which no graph can hold")
    model = quantize(family.model(), Int8())
    fast = optimize(model)
    inputs = family.inputs()
    if "Seq2Seq" not in family.auto_class:
        inputs.pop("labels")  # transformers logs a warning on the way to some losses, which is no graph
    with torch.no_grad():
        torch.testing.assert_close(fast(**inputs).logits, model(**inputs).logits, rtol=1e-3, atol=1e-3)
    assert len(graphs) == 1, "as one graph"


def test_calls_with_a_cache_run_as_they_are(graphs: list):
    family = next(family for family in FAMILIES if family.name == "gpt2")
    model = quantize(family.model(), Int8())
    prompt = {"input_ids": family.inputs()["input_ids"][:1]}
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(optimize(model).generate(**prompt, **options), model.generate(**prompt, **options))


class Forgetful(BertForSequenceClassification):
    """Counts its calls in Python, which one graph cannot hold."""

    calls = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        torch._dynamo.graph_break()
        return super().forward(input_ids=input_ids, attention_mask=attention_mask)


def test_a_model_that_is_no_single_graph_is_compiled_in_parts(graphs: list):
    torch.manual_seed(0)
    model = Forgetful(tiny().config).eval()
    fast = optimize(model)
    for shape in SHAPES[:4]:
        with torch.no_grad():
            torch.testing.assert_close(fast(**batch(*shape)).logits, model(**batch(*shape)).logits)
    assert graphs


def wrong_backend(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return lambda *args: tuple(change(tensor) for tensor in graph.forward(*args))

    return lambda integer: backend


@pytest.mark.parametrize("integer", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize(
    "change",
    [lambda x: x * 1.5, torch.zeros_like, lambda x: x * float("nan"), lambda x: -x],
    ids=["scaled", "zero", "nan", "negated"],
)
def test_a_wrong_result_is_seen(change: Callable, integer: bool, monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "_backend", wrong_backend(change))
    model = quantize(tiny(), Int8()) if integer else tiny()
    with pytest.raises(WrongResult, match="BertForSequenceClassification compiled gives an output of shape"):
        optimize(model)(**batch(4, 9))
    assert not any(module._forward_hooks for module in model.modules())


def test_rounding_is_no_wrong_result_in_an_int8_model(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "_backend", wrong_backend(lambda x: x * (1 + 1e-5)))
    model = quantize(tiny(6), Int8())
    optimize(model, tolerance=1e-9)(**batch(4, 9))
    torch._dynamo.reset()
    with pytest.raises(WrongResult):
        optimize(tiny(6), tolerance=1e-9)(**batch(4, 9))


def test_training_mode_is_refused():
    with pytest.raises(UsageError, match=r"call model\.eval\(\) first"):
        optimize(tiny().train())


def test_a_machine_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch):
    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(UsageError, match=r"found no compiler: install g\+\+ or clang\+\+"):
        optimize(tiny())


@pytest.mark.slow
def test_compiled_for_real():
    torch._dynamo.reset()
    counters.clear()
    plain = tiny()
    model = quantize(plain, Int8())
    fast = optimize(model)
    for shape in SHAPES:
        inputs = batch(*shape)
        with torch.no_grad():
            exact, eager = plain(**inputs).logits, model(**inputs).logits
        compiled = fast(**inputs).logits
        assert (compiled - eager).norm() < 0.05 * eager.norm()
        assert (compiled - exact).norm() < 0.05 * exact.norm()
    assert counters["stats"]["unique_graphs"] == 2
