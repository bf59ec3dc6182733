"""Sizes, operations, memory, and what happens when a shape cannot be timed."""

import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.utils import parametrize, prune
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from effitrans.errors import UsageError, WrongResult
from effitrans.evaluation import Cost, cost, latency, shapes, size
from effitrans.evaluation.flops import count_flops
from effitrans.evaluation.latency import EvaluatedModel, TimedModel
from effitrans.evaluation.record import Latency, Throughput
from effitrans.quantization import SCHEMES, quantize
from effitrans.quantization.modules.grid import full_range_grid
from effitrans.quantization.modules.packed import PackedLinear
from effitrans.tasks import load_task

QUICK = Cost(batches=(2,), lengths=("data", 8), min_repeats=2, min_seconds=0.0, warmup=1, threads=1)


class Packed(nn.Module):
    """An integer layer as quantization makes them: weights and scales in buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.tensor([[1, 0, -3, 4]], dtype=torch.int8))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("position_ids", torch.arange(4), persistent=False)


def test_integer_weights_count_and_their_scales_cost_bits():
    model = Packed()
    assert size.parameters(model) == 4
    assert size.nonzero_parameters(model) == 3
    assert size.bits_per_weight(model) == (4 * 8 + 32) / 4


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_weights_count_one_by_one(bits):
    weight = torch.randn(32, 64)
    grid = full_range_grid(weight, bits, 32)
    packed = PackedLinear.from_integers(grid.round(weight), grid, None)
    model = nn.Sequential(packed)
    assert size.parameters(model) == 64 * 32
    assert size.nonzero_parameters(model) == int(packed.dequantized().count_nonzero())
    stored = packed.weight.nbytes + packed.scale.nbytes + packed.zero_point.nbytes
    assert size.bits_per_weight(model) == 8 * stored / (64 * 32)
    assert bits < size.bits_per_weight(model) < bits + 1
    operations, uncounted = count_flops(lambda batch: model(batch["x"]), [{"x": torch.zeros(5, 64)}])
    assert operations == 2 * 5 * 64 * 32
    assert uncounted == ()


def test_tied_weights_count_once():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=4))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert size.parameters(model) == sum(p.numel() for p in model.parameters())
    assert size.bits_per_weight(model) == 32


def test_structure_reads_every_layer(tiny_teacher):
    model = BertForSequenceClassification.from_pretrained(tiny_teacher)
    structure = size.structure(model)
    assert [(layer.heads, layer.head_dim, layer.ffn, layer.bits) for layer in structure.layers] == [(4, 8, 64, 32)] * 4
    assert structure.layers[0].operator == "full"
    assert structure.embedding_parameters == 17 * 32
    assert structure.hidden_size == 32


@pytest.mark.parametrize("scheme", ["int8-dynamic", "rtn-2", "rtn-3", "rtn-4", "nf4", "llm-int8"])
def test_integers_change_no_width(tiny_teacher, scheme):
    name, _, bits = scheme.partition("-") if scheme.startswith("rtn") else (scheme, "", "")
    if name in ("nf4", "llm-int8"):
        pytest.importorskip("bitsandbytes")
    model = BertForSequenceClassification.from_pretrained(tiny_teacher)
    settings = {"bits": int(bits), "group_size": 16} if bits else {}
    small = size.structure(quantize(model, SCHEMES[name](**settings)))
    assert [(layer.heads, layer.head_dim, layer.ffn) for layer in small.layers] == [(4, 8, 64)] * 4
    assert all(layer.bits < 9 for layer in small.layers)


def test_a_model_without_an_adapter_has_no_layers(tiny_teacher):
    model = BertForSequenceClassification.from_pretrained(tiny_teacher)
    model.config.model_type = "unheard-of"
    assert size.structure(model).layers == ()


def test_modules_of_another_tool_have_no_structure(tiny_teacher):
    from torch.ao.quantization import quantize_dynamic

    model = BertForSequenceClassification.from_pretrained(tiny_teacher)
    if torch.backends.quantized.engine == "none":
        pytest.skip("this build of torch has no engine for torch.ao's integers")
    assert size.structure(quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)).layers == ()


def test_a_wrapper_around_another_runtime_has_no_structure(tiny_teacher):
    class Engine(PreTrainedModel):
        def get_input_embeddings(self):
            return None

    assert size.structure(Engine(BertConfig.from_pretrained(tiny_teacher))).layers == ()


def test_a_defect_in_reading_the_structure_is_not_hidden(tiny_teacher):
    model = BertForSequenceClassification.from_pretrained(tiny_teacher)
    del model.bert.encoder.layer[0].attention.self.attention_head_size
    with pytest.raises(AttributeError):
        size.structure(model)


def test_flops_of_a_bert_are_those_of_its_formula():
    hidden, ffn, layers, length = 32, 64, 2, 10
    config = BertConfig(
        hidden_size=hidden, num_attention_heads=2, intermediate_size=ffn, num_hidden_layers=layers, vocab_size=50
    )
    model = BertForSequenceClassification(config).eval()
    products = length * (4 * hidden * hidden + 2 * hidden * ffn) + 2 * length * length * hidden
    expected = 2 * (layers * products + hidden * hidden + 2 * hidden)
    batch = {"input_ids": torch.randint(0, 50, (1, length))}
    assert count_flops(lambda b: model(**b), [batch]) == (expected, ())


def test_integer_products_count():
    a, b = torch.zeros(32, 64, dtype=torch.int8), torch.zeros(64, 16, dtype=torch.int8)
    assert count_flops(lambda batch: torch._int_mm(batch["a"], b), [{"a": a}]) == (2 * 32 * 64 * 16, ())


def test_operators_that_cannot_be_counted_are_named():
    library = torch.library.Library("effitrans_test", "DEF")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: x * 2, "CompositeExplicitAutograd")
    flops, uncounted = count_flops(lambda b: torch.ops.effitrans_test.mystery(b["x"]), [{"x": torch.ones(2)}])
    assert flops == 0
    assert uncounted == ("effitrans_test.mystery",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lengths": ["dat"]}, "lengths"),
        ({"lengths": [0]}, "from 1 to"),
        ({"batch": [1]}, "did you mean 'batches'"),
        ({"threads": 0}, "threads"),
    ],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Cost.parse(values)


def test_threads_are_those_that_can_be_used():
    assert cost.usable_threads(10_000) <= 10_000
    assert cost.usable_threads(1) == 1


def test_simulations_are_found():
    plain = nn.Sequential(nn.Linear(2, 2))
    assert cost.simulated(plain, []) is None
    assert cost.simulated(plain, [{"summary": {"simulated": "fake int4"}}]) == "fake int4"
    masked = nn.Sequential(nn.Linear(2, 2))
    prune.random_unstructured(masked[0], "weight", amount=0.5)
    assert "mask" in cost.simulated(masked, [])
    parametrized = nn.Sequential(nn.Linear(2, 2))
    parametrize.register_parametrization(parametrized[0], "weight", nn.Identity())
    assert "parametrization" in cost.simulated(parametrized, [])


@pytest.fixture
def subject(tiny_teacher, tiny_tokenizer):
    model = BertForSequenceClassification.from_pretrained(tiny_teacher).eval()
    return EvaluatedModel("tiny", model, tiny_tokenizer, None)


@pytest.fixture
def examples(tiny_task):
    return shapes.SplitBatches(load_task(tiny_task), "test")


def grid(timed, examples, settings):
    """Rows, rates and notes."""
    found = list(latency.measure_grid(timed, examples, settings))
    return tuple([each for each in found if isinstance(each, kind)] for kind in (Latency, Throughput, str))


def test_every_shape_is_timed_on_the_same_batches(subject, examples):
    seen = {"model": [], "baseline": []}

    def spy(name):
        def run(**inputs):
            seen[name].append(inputs["input_ids"].tolist())
            return subject.model(**inputs)

        return run

    timed = {name: TimedModel(spy(name), subject) for name in seen}
    rows, rates, _ = grid(timed, examples, QUICK)
    assert [(row.batch, row.length) for row in rows] == [(2, "data"), (2, 8)]
    assert sorted(seen["model"]) == sorted(seen["baseline"])
    assert rows[0].mean_length > 2
    assert rows[1].mean_length == 8
    for row, rate in zip(rows, rates, strict=True):
        assert row.ratio_to_baseline == row.others["baseline"].ratio
        assert row.runs == sum(map(len, row.samples_ms))
        mean_round = sum(map(sum, row.samples_ms)) / len(row.samples_ms) / len(row.samples_ms[0])
        assert rate.items_per_s == pytest.approx(2000 / mean_round, rel=5)
    assert rates[1].tokens_per_s == pytest.approx(8 * rates[1].items_per_s)


def test_shapes_that_do_not_exist_are_noted(subject, examples):
    settings = QUICK.model_copy(update={"batches": (17,), "lengths": ("data", 64)})
    rows, _, notes = grid({"model": TimedModel(subject.model, subject)}, examples, settings)
    assert rows == []
    assert "17 x data: not measured, the split holds fewer than 17 examples" in notes[0]
    assert "17 x 64: not measured, tiny takes at most 32 tokens" in notes[1]


def test_out_of_memory_at_one_shape_leaves_the_others(subject, examples):
    def run(**inputs):
        if inputs["input_ids"].shape == (2, 13):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")
        return subject.model(**inputs)

    settings = QUICK.model_copy(update={"lengths": ("data", 13, 9)})
    rows, rates, notes = grid({"model": TimedModel(run, subject)}, examples, settings)
    assert [row.error for row in rows] == [None, "out of memory", None]
    assert rows[1].p50_ms is None
    assert [rate.length for rate in rates] == ["data", 9]
    assert any("2 x 13: not measured, out of memory" in note for note in notes)


def test_other_errors_are_not_swallowed(subject, examples):
    def run(**inputs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        grid({"model": TimedModel(run, subject)}, examples, QUICK)


def test_a_compiled_model_that_says_something_else_gets_no_speed(subject, examples):
    def wrong(**inputs):
        output = subject.model(**inputs)
        output.logits = output.logits * 1.5
        return output

    timed = {"model": TimedModel(wrong, subject), "model, eager": TimedModel(subject.model, subject)}
    rows, rates, _ = grid(timed, examples, QUICK)
    assert rates == []
    assert all(row.p50_ms is None and "off by 0.5" in row.error for row in rows)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WrongResult("compiled output differs by 0.8"), "compiled output differs by 0.8"),
        (TorchDynamoException("no kernel\nfor this"), "compiling failed (no kernel)"),
    ],
    ids=["wrong-result", "no-result"],
)
def test_a_model_that_the_compiler_breaks_gets_no_speed(subject, examples, error, said):
    def broken(**inputs):
        raise error

    timed = {"model": TimedModel(broken, subject), "model, eager": TimedModel(subject.model, subject)}
    rows, _, notes = grid(timed, examples, QUICK)
    assert all(row.error == said for row in rows)
    assert f"not measured, {said}" in notes[0]


def test_a_compiled_model_is_timed_beside_itself_and_the_eager_baseline(subject, examples):
    names = ("model", "model, eager", "baseline", "baseline, compiled")
    timed = {name: TimedModel(subject.model, subject) for name in names}
    rows, _, _ = grid(timed, examples, QUICK)
    assert rows[0].compiled
    assert set(rows[0].others) == set(names[1:])
    assert rows[0].ratio_to_baseline == rows[0].others["baseline"].ratio


def test_slow_models_get_fewer_batches_a_round(subject, examples):
    class Clock:
        batches = 0

    def run(**inputs):
        Clock.batches += 1
        return subject.model(**inputs)

    hurried = QUICK.model_copy(update={"lengths": ("data",), "max_seconds": 1e-6})
    rows, _, notes = grid({"model": TimedModel(run, subject)}, examples, hurried)
    assert all(len(sample) == 1 for sample in rows[0].samples_ms)
    assert len(rows[0].samples_ms) == 2
    assert notes == [] or "noisy" in notes[0]
