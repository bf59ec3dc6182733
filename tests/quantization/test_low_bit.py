"""Weight-only schemes: GPTQ's objective against rounding and brute force; every family, saved, pruned, tied."""

import itertools
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.pruning import Pruning, prune
from effitrans.quantization import AWQ, GPTQ, RTN, Int8Embedding, Int8Linear, PackedLinear, quantize
from effitrans.quantization.calibration import CalibrationData
from effitrans.quantization.modules.grid import full_range_grid
from effitrans.quantization.schemes.low_bit import gptq
from effitrans.quantization.schemes.low_bit.by_block import hessians_of, output_error
from tests.architectures.families import FAMILIES, logits
from tests.quantization.calibration import batches_for

BY_NAME = {family.name: family for family in FAMILIES}


def problem(rows: int = 24, columns: int = 64, tokens: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of correlated inputs with outlying features."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(tokens, columns, generator=generator) @ (mix + 0.3 * torch.eye(columns))
    x[:, ::16] *= 6
    return torch.randn(rows, columns, generator=generator), x.t() @ x / tokens


def rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    grid = full_range_grid(weight, bits, group)
    return grid.values(grid.round(weight))


@pytest.mark.parametrize("act_order", [True, False], ids=["act-order", "in-order"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_is_never_worse_than_rounding_and_mostly_far_better(bits: int, act_order: bool):
    for seed in range(3):
        weight, hessian = problem(seed=seed)
        q, grid = gptq.quantize_weight(weight, hessian, bits, 16, act_order=act_order)
        error = output_error(weight - grid.values(q), hessian)
        plain = output_error(weight - rounded(weight, bits, 16), hessian)
        assert bool((error <= plain).all())
        assert float(error.sum()) < 0.6 * float(plain.sum())
        assert int(q.max()) < 2**bits


@pytest.mark.parametrize("act_order", [True, False], ids=["act-order", "in-order"])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (3, 16), (2, 64)])
def test_gptq_is_never_worse_than_on_grids_of_the_full_range(bits: int, group: int, act_order: bool):
    """Clipping looks at one weight at a time; whether it pays where weights make up for each other shows afterwards."""
    for seed in range(5):
        weight, hessian = problem(seed=seed)
        q, grid = gptq.quantize_weight(weight, hessian, bits, group, act_order=act_order)
        full = full_range_grid(weight, bits, group)
        whole = gptq.round_in_order(weight, hessian, full, act_order=act_order, damping=0.01, block=128)
        error = output_error(weight - grid.values(q), hessian)
        assert bool((error <= output_error(weight - full.values(whole), hessian)).all())


@pytest.mark.parametrize("tokens", [3, 64], ids=["rank-deficient", "full-rank"])
def test_gptq_copes_with_any_hessian(tokens: int):
    weight, hessian = problem(tokens=tokens)
    hessian[5], hessian[:, 5] = 0, 0
    q, grid = gptq.quantize_weight(weight, hessian, 3, 16)
    error = output_error(weight - grid.values(q), hessian)
    assert bool((error <= output_error(weight - rounded(weight, 3, 16), hessian)).all())
    q, grid = gptq.quantize_weight(weight, torch.zeros_like(hessian), 3, 16)
    assert bool(grid.values(q).isfinite().all())


def test_the_block_changes_nothing_but_rounding():
    weight, hessian = problem()
    grid = full_range_grid(weight, 4, 16)
    results = [
        gptq.round_in_order(weight, hessian, grid, act_order=True, damping=0.01, block=block) for block in (1, 16, 128)
    ]
    for other in results[1:]:
        assert float((results[0] != other).float().mean()) < 0.01


def test_gptq_is_mostly_close_to_the_best_of_all_roundings():
    """Brute force over up or down for each of eight weights, whose inputs are strongly correlated."""
    choices = torch.tensor(list(itertools.product((0, 1), repeat=8)))
    among_the_best = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(50, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
        hessian, weight = x.t() @ x, torch.randn(1, 8, generator=generator)
        grid = full_range_grid(weight, 3, 8)
        scale, zero = grid.spread()
        candidates = (torch.floor(weight / scale) + zero + choices).clamp(0, 7)
        errors = output_error((candidates - zero) * scale - weight, hessian)
        greedy = gptq.round_in_order(weight, hessian, grid, act_order=True, damping=1e-6, block=128)
        mine = float(output_error(weight - grid.values(greedy), hessian))
        among_the_best += mine <= float(errors.quantile(0.05))
    assert among_the_best >= 12


def test_uncorrelated_inputs_leave_nothing_to_gain():
    weight, _ = problem()
    grid = full_range_grid(weight, 4, 16)
    q = gptq.round_in_order(weight, torch.eye(64), grid, act_order=True, damping=0.01, block=128)
    assert torch.equal(q, grid.round(weight))


SCHEMES = [
    pytest.param(RTN(bits=4, group_size=32), id="rtn4"),
    pytest.param(GPTQ(bits=4, group_size=32), id="gptq4"),
    pytest.param(GPTQ(bits=3, group_size=16, scaling=True), id="gptq3-scaled"),
    pytest.param(AWQ(bits=8, group_size=None), id="awq8"),
]
NAMES = ["bert", "gpt2", "llama", "t5-gated", "base-decoder"]
LOOK_ALIKE = ["qwen2", "vit", "bart", "base-seq2seq", "distilbert"]


@pytest.mark.parametrize("config", SCHEMES)
@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in LOOK_ALIKE)])
def test_every_family_saved_and_loaded_bit_equal(name: str, config, tmp_path: Path):
    family = BY_NAME[name]
    model = family.model()
    before = logits(model, family.inputs())
    small = quantize(model, config, batches_for(family))
    assert torch.equal(logits(model, family.inputs()), before)
    after = logits(small, family.inputs())
    assert after.isfinite().all()
    packed = [module for module in small.modules() if isinstance(module, PackedLinear)]
    assert len(packed) >= 12
    assert all(module.bits == config.bits for module in packed)
    checkpoint.save(small, tmp_path / "model")
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded, family.inputs()), after)
    assert {n: t.dtype for n, t in loaded.state_dict().items()} == {n: t.dtype for n, t in small.state_dict().items()}
    assert loaded.is_quantized


def test_the_data_help():
    """On the whole model GPTQ and AWQ beat rounding, and more bits beat fewer."""
    family = BY_NAME["llama"]
    model, data = family.model(), batches_for(family, 16)
    expected = logits(model, family.inputs())

    def error(config) -> float:
        return float((logits(quantize(model, config, data), family.inputs()) - expected).norm() / expected.norm())

    plain, better, scaled = (error(kind(bits=4, group_size=32)) for kind in (RTN, GPTQ, AWQ))
    assert better < plain
    assert scaled < plain
    assert error(RTN(bits=8, group_size=32)) < 0.2 * plain


def test_a_tied_output_layer_stays_tied_in_int8(tmp_path: Path):
    family = BY_NAME["gpt2"]
    small = quantize(family.model(), GPTQ(group_size=32), batches_for(family))
    assert isinstance(small.lm_head, Int8Linear)
    assert isinstance(small.transformer.wte, Int8Embedding)
    assert small.lm_head.weight is small.transformer.wte.weight
    floating = quantize(family.model(), RTN(group_size=32, embeddings=False))
    assert type(floating.lm_head) is nn.Linear
    assert floating.lm_head.weight is floating.transformer.wte.weight


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "base-decoder"])
def test_pruned_then_quantized(name: str, tmp_path: Path):
    family = BY_NAME[name]
    pruned = prune(family.model(), Pruning(heads=0.25, ffn=0.25, multiple_of=8))
    small = quantize(pruned, GPTQ(bits=3, group_size=8), batches_for(family))
    checkpoint.save(small, tmp_path / "model")
    loaded = checkpoint.load_model(tmp_path / "model", family.auto_class)
    assert torch.equal(logits(loaded, family.inputs()), logits(small, family.inputs()))
    assert [entry["verb"] for entry in checkpoint.history(loaded)] == ["prune", "quantize"]


def test_generation_runs():
    family = BY_NAME["llama"]
    small = quantize(family.model(), RTN(group_size=32))
    ids = small.generate(input_ids=family.inputs()["input_ids"][:1], max_new_tokens=4, do_sample=False)
    assert ids.shape == (1, 11)


def test_layers_that_calibration_never_runs_are_rounded_and_named():
    family = BY_NAME["bert"]
    model = family.model()
    model.bert.extra = nn.Linear(32, 32)
    result = GPTQ(group_size=32).apply(model, CalibrationData(batches_for(family)))
    assert result.notes == {"not_seen_in_calibration": ["bert.extra"]}
    assert isinstance(model.bert.extra, PackedLinear)


def test_padding_has_no_part_in_the_statistics():
    family = BY_NAME["bert"]
    model, batch = family.model(), dict(family.inputs())
    layer = model.bert.encoder.layer[0].attention.self.query
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 4:] = 9
    first, second = (hessians_of(model, [layer], [b], {layer: 1})[layer] for b in (batch, other))
    torch.testing.assert_close(first, second)
    whole = {**other, "attention_mask": torch.ones_like(batch["attention_mask"])}
    assert not torch.allclose(hessians_of(model, [layer], [whole], {layer: 1})[layer], first)


REFUSED = {
    "no-data": (GPTQ(group_size=32), None, r"gptq measures on calibration data and got none.*int8-dynamic, rtn"),
    "groups": (RTN(group_size=48), None, r"group_size 48 does not divide the 32 input features.*choose 32 or 16 or 8"),
    "too-little": (GPTQ(group_size=32), "one", r"too little calibration data: .*at least 16"),
    "overflows": (GPTQ(group_size=32), "huge", "NaN or infinite on the calibration data"),
    "nothing": (RTN(skip=("bert", "classifier")), None, "rtn changes nothing"),
    "tables-only": (RTN(skip=("encoder", "pooler", "classifier")), None, "use int8-dynamic"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_untouched(case: str):
    config, data, message = REFUSED[case]
    family = BY_NAME["bert"]
    model = family.model()
    batches = None if data is None else batches_for(family, 1 if data == "one" else 8)
    if data == "huge":
        model.bert.encoder.layer[0].intermediate.dense.bias.data.fill_(3e38)
    before = model.state_dict(keep_vars=True)
    with pytest.raises(UsageError, match=message):
        quantize(model, config, batches, inplace=True)
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is before[name] for name in before)
    assert not getattr(model, "is_quantized", False)


def test_not_finite_pixels_are_refused():
    family = BY_NAME["vit"]
    batches = batches_for(family)
    batches[3]["pixel_values"][0, 0, 0, 0] = float("inf")
    with pytest.raises(UsageError, match="pixel_values holds NaN"):
        quantize(family.model(), GPTQ(group_size=16), batches)


def test_quantizing_twice_is_refused():
    small = quantize(BY_NAME["bert"].model(), RTN(group_size=32))
    with pytest.raises(UsageError, match="quantized already"):
        quantize(small, RTN(group_size=32))


@pytest.mark.parametrize("bits", [1, 5, 16])
def test_bits_that_do_not_exist(bits: int):
    with pytest.raises(UsageError, match="bits: Input should be 2, 3, 4 or 8"):
        RTN.parse({"bits": bits})
