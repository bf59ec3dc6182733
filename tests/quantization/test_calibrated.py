"""Int8 with calibration data: observers, smoothing and its folds, bias correction, fixed ranges, bounds."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.quantization import (
    GPTQ,
    RTN,
    Int8,
    Int8Embedding,
    Int8Linear,
    Int8Smooth,
    Int8Static,
    PackedLinear,
    quantize,
)
from effitrans.quantization.calibration import relative_error, trace
from effitrans.quantization.modules import kernels
from effitrans.quantization.schemes.int8 import smoothing
from effitrans.quantization.schemes.int8.observers import BINS, OBSERVERS, Observations, input_ranges
from tests.architectures.families import FAMILIES, Family, logits
from tests.quantization.calibration import batches_for

BY_NAME = {family.name: family for family in FAMILIES}


def seen(values: torch.Tensor, batches: int = 8) -> Observations:
    parts = values.chunk(batches)
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values, BINS, low, high)
    return Observations(torch.stack([p.min() for p in parts]), torch.stack([p.max() for p in parts]), counts)


def normal(outlier: float | None = None) -> torch.Tensor:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    if outlier is not None:
        values[7] = outlier
    return values


def mean_squared_error(values: torch.Tensor, limits: tuple[float, float]) -> float:
    scale, zero_point = grid = kernels.fixed_grid(*limits)
    back = (kernels.quantize_on(values, grid).float() - zero_point) * scale
    return float((back - values).square().mean())


def test_minmax_is_all_and_the_average_lies_within():
    values = normal(40.0)
    assert OBSERVERS["minmax"]().choose(seen(values)) == (float(values.min()), 40.0)
    low, high = OBSERVERS["moving-average"]().choose(seen(values))
    assert values.min() < low < 0 < high < 40
    steady = Observations(torch.full((5,), -1.0), torch.full((5,), 2.0))
    assert OBSERVERS["moving-average"]().choose(steady) == pytest.approx((-1.0, 2.0))


@pytest.mark.parametrize("name", ["percentile", "entropy"])
def test_an_outlier_is_clipped(name: str):
    values = normal(100.0)
    low, high = OBSERVERS[name]().choose(seen(values))
    assert 2 < high < 50
    assert -6 < low < -2


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("kind", ["normal", "positive", "constant", "zero"])
def test_any_distribution_gives_a_usable_range(name: str, kind: str):
    values = {
        "normal": normal(),
        "positive": normal().relu(),
        "constant": torch.full((100,), 3.0),
        "zero": torch.zeros(100),
    }[kind]
    low, high = OBSERVERS[name]().choose(seen(values))
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= high
    if kind in ("normal", "positive"):
        assert mean_squared_error(values, (low, high)) < 0.002


@pytest.mark.parametrize("outlier", [None, 8.0, 30.0, 200.0])
def test_mse_has_the_least_error_of_all(outlier: float | None):
    values = normal(outlier)
    errors = {name: mean_squared_error(values, kind().choose(seen(values))) for name, kind in OBSERVERS.items()}
    assert errors["mse"] <= 1.02 * min(errors.values())


def test_a_fixed_grid_holds_its_ends_and_zero():
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)):
        scale, zero_point = grid = kernels.fixed_grid(low, high)
        x = torch.tensor([min(low, 0.0), 0.0, max(high, 0.0)])
        back = (kernels.quantize_on(x, grid).float() - zero_point) * scale
        assert back[1] == 0
        assert bool(((back - x).abs() <= 1.001 * scale + 1e-30).all())


def test_a_static_layer_is_the_integer_arithmetic_written_out():
    torch.manual_seed(0)
    linear, x, factor = nn.Linear(12, 5), torch.randn(2, 3, 12), torch.rand(12) + 0.5
    layer = Int8Linear.from_float(linear, factor, (-2.0, 1.5))
    assert repr(layer) == "Int8Linear(in_features=12, out_features=5, bias=True, smooth=True, static=True)"
    q = torch.round(x * factor * (1 / layer.input_scale) + layer.input_zero_point).clamp(-128, 127).long()
    product = ((q - layer.input_zero_point)[..., None, :] * layer.weight.long()).sum(-1)
    expected = product * layer.input_scale.double() * layer.scale.double() + linear.bias
    torch.testing.assert_close(layer(x).double(), expected.detach(), rtol=1e-5, atol=1e-5)
    with torch.device("meta"):
        empty = Int8Linear.from_spec(layer.spec(), linear)
    shapes = [{name: (t.shape, t.dtype) for name, t in m.state_dict().items()} for m in (layer, empty)]
    assert shapes[0] == shapes[1]


def with_outliers(family: Family, seed: int = 0) -> nn.Module:
    """A model whose norms give some features far larger than others, as trained models do."""
    model = family.model(seed)
    for module in model.modules():
        if type(module).__name__.endswith("Norm"):
            module.weight.data[::8] *= 12  # type: ignore[union-attr,operator,index]
    return model


def error_of(config, family: Family, model: nn.Module) -> float:
    small = quantize(model, config, batches_for(family))  # type: ignore[arg-type]
    return relative_error([logits(small, family.inputs())], [logits(model, family.inputs())])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_smoothing_helps_where_there_are_outliers(name: str):
    """On average: of single models of this size, one in four is rounded worse."""
    family = BY_NAME[name]
    models = [with_outliers(family, seed) for seed in range(4)]
    static = {"observer": "minmax", "bias_correction": False}

    def mean_error(config) -> float:
        return sum(error_of(config, family, model) for model in models) / len(models)

    rough = mean_error(Int8Static(smooth=False, **static))
    assert mean_error(Int8Static(**static)) < rough
    assert mean_error(Int8Smooth()) < rough


def test_smoothing_of_one_layer_beats_none_by_far():
    torch.manual_seed(0)
    weight, rows = torch.randn(32, 64), torch.randn(200, 64)
    rows[:, 3] *= 60
    statistics = smoothing.InputStatistics(rows.abs().amax(0), rows)
    alphas = Int8Smooth().alphas
    factor = smoothing.best_factor([weight], statistics, alphas, static=False)
    assert factor is not None
    assert int(factor.argmin()) == 3
    errors = [smoothing._output_error([weight], rows, f, static=False) for f in (factor, None)]
    assert errors[0] < 0.3 * errors[1]
    even = torch.randn(200, 64)
    assert smoothing.best_factor([weight], smoothing.InputStatistics(torch.ones(64), even), (0.0,), False) is None


SLOW = ["t5-gated", "vit", "bart", "base-decoder", "base-seq2seq"]
FOLDS = ["llama", "gpt2", "vit", "bert"]


@pytest.mark.parametrize("name", FOLDS)
def test_folding_leaves_the_function_as_it_is(name: str):
    family = BY_NAME[name]
    model = with_outliers(family)
    before = logits(model, family.inputs())  # type: ignore[arg-type]
    batches = batches_for(family)
    names = {m: n for n, m in model.named_modules() if _is_linear(m) and ("layer" in n or ".h." in n)}
    found = trace(model, names, batches)  # type: ignore[arg-type]
    result = smoothing.smooth_layers(
        model, list(names), found, batches, alphas=(0.5, 0.7), static=True, fold=True, seed=0
    )  # type: ignore[arg-type]
    after = logits(model, family.inputs())  # type: ignore[arg-type]
    assert relative_error([after], [before]) < 1e-3
    assert result.folded > 0
    for layer, factor in result.factors.items():
        assert factor.shape == (layer.weight.shape[0 if "Conv1D" in type(layer).__name__ else 1],)  # type: ignore[union-attr,index]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def test_a_norm_that_the_residual_reads_keeps_its_weight():
    family = BY_NAME["bert"]
    model = with_outliers(family)
    norms = {n: p.clone() for n, p in model.named_parameters() if "LayerNorm" in n}
    small = quantize(model, Int8Smooth(), batches_for(family), inplace=True)  # type: ignore[arg-type]
    assert all(torch.equal(p, norms[n]) for n, p in small.named_parameters() if n in norms)
    assert any(m.factor is not None for m in small.modules() if isinstance(m, Int8Linear))


def test_bias_correction_has_nothing_to_do_with_clipping():
    family = BY_NAME["bert"]
    model, batches = with_outliers(family), batches_for(family, 16)
    biases = []
    for observer in ("minmax", "percentile", "entropy"):
        small = quantize(model, Int8Static(observer=observer, smooth=False), batches)  # type: ignore[arg-type]
        biases.append([layer.bias for layer in small.modules() if isinstance(layer, Int8Linear)])
    for layers in zip(*biases, strict=True):
        assert torch.equal(layers[0], layers[1])
        assert torch.equal(layers[0], layers[2])


def test_bias_correction_takes_the_mean_error_of_the_weights_away():
    family = BY_NAME["bert"]
    model, batches = with_outliers(family), batches_for(family, 16)
    watched = model.bert.encoder.layer[0].intermediate.dense  # type: ignore[union-attr,index]
    seen = []
    handle = watched.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in batches:
            model(**batch)  # type: ignore[arg-type]
    handle.remove()
    mean_1K = torch.cat(seen).mean(0, keepdim=True)
    errors = []
    for correct in (False, True):
        small = quantize(model, Int8Static(smooth=False, bias_correction=correct), batches)  # type: ignore[arg-type]
        layer = small.bert.encoder.layer[0].intermediate.dense  # type: ignore[union-attr]
        rounded = torch.nn.functional.linear(mean_1K, layer.weight.float() * layer.scale[:, None], layer.bias)
        errors.append(float((rounded - watched(mean_1K)).detach().norm()))
        assert torch.equal(layer.bias, watched.bias) is not correct
    assert errors[1] < errors[0] / 3


SCHEMES = [
    pytest.param(Int8Smooth(), id="smooth"),
    pytest.param(Int8Smooth(fold=False, bias_correction=False), id="smooth-unfolded"),
    pytest.param(Int8Static(), id="static-mse"),
    pytest.param(Int8Static(observer="percentile", smooth=False), id="static-percentile"),
]


@pytest.mark.parametrize("config", SCHEMES)
@pytest.mark.parametrize(
    "name",
    [
        *["bert", "gpt2", "llama"],
        *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW),
    ],
)
def test_every_family_saved_and_loaded_bit_equal(name: str, config, tmp_path: Path):
    family = BY_NAME[name]
    model = family.model()
    small = quantize(model, config, batches_for(family))
    expected = logits(small, family.inputs())
    assert relative_error([expected], [logits(model, family.inputs())]) < 0.7
    checkpoint.save(small, tmp_path / "model")
    loaded = checkpoint.load_model(tmp_path / "model", family.auto_class)
    assert torch.equal(logits(loaded, family.inputs()), expected)
    static = isinstance(config, Int8Static)
    layers = [m for m in loaded.modules() if isinstance(m, Int8Linear)]
    assert all((m.input_scale is not None) is static for m in layers)
    if family.tied and family.name != "bart":
        output, table = loaded.get_output_embeddings(), loaded.get_input_embeddings()
        assert isinstance(table, Int8Embedding)
        assert output.weight is table.weight


@pytest.mark.parametrize("config", [Int8, Int8Smooth, RTN, GPTQ], ids=lambda c: c.__name__)
def test_the_bound_holds_and_as_little_as_possible_stays(config):
    family = BY_NAME["bert"]
    model, batches = family.model(), batches_for(family)
    options = {"group_size": 32, "bits": 3} if config in (RTN, GPTQ) else {}

    def error(small) -> float:
        return relative_error([logits(small, b) for b in batches], [logits(model, b) for b in batches])

    whole = error(quantize(model, config(**options), batches))
    small = quantize(model, config(**options, max_error=0.5 * whole), batches)
    assert error(small) <= 0.5 * whole
    summary = checkpoint.history(small)[-1]["summary"]
    assert summary["bound"]["measured"] == pytest.approx(error(small), rel=1e-3)
    rows = summary["left_for_the_bound"]
    assert rows
    assert [row["error"] for row in rows] == sorted((row["error"] for row in rows), reverse=True)
    for row in rows:
        assert not isinstance(small.get_submodule(row["layer"]), Int8Linear | Int8Embedding | PackedLinear)
        assert row["layer"] in summary["left"]
    assert summary["linear_layers"] > 0
    easy = quantize(model, config(**options, max_error=10.0), batches)
    assert checkpoint.history(easy)[-1]["summary"]["left_for_the_bound"] == []


def test_a_bound_that_nothing_meets_is_refused_and_the_model_is_whole():
    family = BY_NAME["bert"]
    model, batches = family.model(), batches_for(family)
    before = logits(model, family.inputs())
    with pytest.raises(UsageError, match=r"leaves nothing to quantize.*Raise the bound"):
        quantize(model, Int8(max_error=1e-9), batches, inplace=True)
    assert torch.equal(logits(model, family.inputs()), before)
    assert not any(isinstance(m, Int8Linear | Int8Embedding) for m in model.modules())


def test_max_drop_is_measured_on_the_task(tiny_teacher, tiny_task, tiny_tokenizer):
    model = checkpoint.load_model(tiny_teacher, "AutoModelForSequenceClassification")
    small = quantize(model, Int8(max_drop=1.0), str(tiny_task), processor=tiny_tokenizer)
    summary = checkpoint.history(small)[-1]["summary"]
    assert summary["bound"]["max_drop"] == 1.0
    assert summary["bound"]["measured"] <= 1.0


REFUSED = {
    "no-data": (Int8Smooth(), None, "int8-smooth measures on calibration data and got none"),
    "no-data-for-a-bound": (Int8(max_error=0.1), None, "max_error measures on calibration data and got none"),
    "no-task": (Int8(max_drop=0.3), 8, "max_drop bounds the task's metric and the calibration data are no task"),
    "too-little": (Int8Static(), 1, "too little calibration data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str):
    config, number, message = REFUSED[case]
    family = BY_NAME["bert"]
    with pytest.raises(UsageError, match=message):
        quantize(family.model(), config, None if number is None else batches_for(family, number))


def test_settings_that_do_not_fit():
    with pytest.raises(UsageError, match=r"unknown observer 'mean': .*entropy"):
        Int8Static.parse({"observer": "mean"})
    with pytest.raises(UsageError, match="two ways to bound"):
        Int8.parse({"max_error": 0.1, "max_drop": 0.3})


def test_ranges_follow_the_factor():
    family = BY_NAME["bert"]
    model, batches = family.model(), batches_for(family)
    layer = model.bert.encoder.layer[1].output.dense
    plain = input_ranges(model, [layer], batches, {}, "minmax")[layer]
    doubled = input_ranges(model, [layer], batches, {layer: torch.full((64,), 2.0)}, "minmax")[layer]
    assert doubled == pytest.approx((2 * plain[0], 2 * plain[1]))
