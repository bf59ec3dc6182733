"""Comparing attention operators: one initialisation, refusals before anything runs, and cost by length."""

import json
import subprocess
import sys

import pytest
import torch

from effitrans.attention import Full, Kernel, Linear, Local, Nystrom, Site
from effitrans.errors import UsageError
from effitrans.evaluation import scaling
from effitrans.evaluation.scaling import LengthCost, exponents, measure_scaling
from effitrans.recipes import load_study
from effitrans.recipes.attention import (
    attention_study,
    common_site,
    compare_attention,
    operators_of,
    parse_variants,
)
from effitrans.reporting.scaling import scaling_markdown, scaling_plots
from effitrans.tasks import load_task
from effitrans.tasks.loading import load_for_task

VARIANTS = {"full": Full(), "near": Local(window=2), "linear": Linear()}
MODEL = {"base": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}}
TRAINING = {"max_steps": 2, "batch_size": 4}
SITE = Site(num_heads=2, num_key_value_heads=1, head_dim=8)


def study(task, variants=VARIANTS, **changes):
    return attention_study(str(task), variants, **{"model": MODEL, "seeds": (0, 1), "training": TRAINING, **changes})


def flat(model):
    """All weights but those of the operators, as one vector."""
    named = model.named_parameters()
    return torch.cat([weight.detach().flatten() for name, weight in named if "attention_operator" not in name])


def test_variants_are_trained_and_measured(tiny_task, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "_peak", lambda config, site, length, training: 2 * length)
    output = tmp_path / "out"
    one = study(tiny_task, seeds=(0,))
    records, cells = compare_attention(one, VARIANTS, output, lengths=(16, 64), repeats=1)
    assert [record.model for record in records] == list(VARIANTS)
    assert records[0].study.baseline == "full"
    assert [(cell.variant, cell.length) for cell in cells] == [(n, length) for length in (16, 64) for n in VARIANTS]
    assert all(cell.inference_ms and cell.training_ms and cell.training_bytes for cell in cells)
    stored = json.loads((output / "lengths.json").read_text())
    assert stored["site"]["num_heads"] == 2
    assert stored["operators"]["near"]["window"] == 2
    assert {"git_commit", "torch", "threads"} <= stored["provenance"].keys()
    page = (output / "report.md").read_text()
    assert "| operator | 16 | 64 | exponent |" in page
    assert all(
        f"({name})" in page and (output / name).read_text().startswith("<svg") for name in ("speed.svg", "lengths.svg")
    )
    assert "Time and memory by length" in (output / "report.html").read_text()
    before = (output / "lengths.json").read_bytes()
    again, cells_again = compare_attention(one, VARIANTS, output, lengths=(16, 64), repeats=1, resume=True)
    assert (again, cells_again) == (records, cells)
    assert (output / "lengths.json").read_bytes() == before


def test_all_variants_of_a_seed_start_alike(tiny_task, monkeypatch, tmp_path):
    """What the train step receives: the same weights, whichever operator was put in, and others for another seed."""
    from effitrans.recipes import steps

    seen = []
    train = steps.train

    def spy(model, task, config, **arguments):
        seen.append((config.seed, flat(model)))
        return train(model, task, config, **arguments)

    monkeypatch.setattr(steps, "train", spy)
    compare_attention(study(tiny_task), VARIANTS, tmp_path / "out", lengths=())
    assert [seed for seed, _ in seen] == [0, 0, 0, 1, 1, 1]
    weights = [weight for _, weight in seen]
    assert all(torch.equal(weight, weights[0]) for weight in weights[:3])
    assert not torch.equal(weights[0], weights[3])
    fresh = load_for_task(MODEL, load_task(str(tiny_task)), seed=1).model
    assert torch.equal(weights[3], flat(fresh))


def test_an_operator_that_the_model_cannot_take_is_refused_first(tiny_task, tmp_path):
    variants = {"full": Full(), "landmarks": Nystrom()}
    decoder = {"base": {**MODEL["base"], "form": "decoder"}}
    with pytest.raises(UsageError, match=r"variant 'landmarks'.*causal attention.*leave it out"):
        compare_attention(study(tiny_task, variants, model=decoder), variants, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert common_site(study(tiny_task, model=decoder), VARIANTS).causal


def test_variants_are_read_with_their_settings():
    found = parse_variants(["full", "near=local", "local"], {"near.window": 4, "near.dilation": 2})
    assert found == {"full": Full(), "near": Local(window=4, dilation=2), "local": Local()}


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["fulll"], {}, "did you mean 'full'"),
        (["local", "local"], {}, "each may stand once"),
        (["local"], {"window": 3}, "expected VARIANT.FIELD=VALUE"),
        (["local"], {"linear.chunk_size": 3}, "with a variant of local"),
        (["local"], {"local.windw": 3}, "did you mean 'window'"),
    ],
)
def test_wrong_variants_are_refused(names, settings, message):
    with pytest.raises(UsageError, match=message):
        parse_variants(names, settings)


def test_operators_of_a_study_are_those_that_it_was_made_from():
    assert operators_of(study("listops")) == VARIANTS
    assert list(operators_of(load_study("attention-mqar")))[:2] == ["full", "local"]
    with pytest.raises(UsageError, match=r"variant '.*' of distillation-sst2 does not begin with a swap"):
        operators_of(load_study("distillation-sst2"))


def test_exponents_are_slopes_at_the_longer_half():
    lengths = (64, 128, 256, 512)
    cells = [
        LengthCost(variant="a", length=n, inference_ms=5 if n == 64 else n**1.5, training_bytes=n * n) for n in lengths
    ]
    cells.append(LengthCost(variant="b", length=512, inference_ms=1.0))
    found = exponents(cells)
    assert found["a"]["inference_ms"] == pytest.approx(1.5)
    assert found["a"]["training_bytes"] == pytest.approx(2)
    assert found["a"]["training_ms"] is None
    assert found["b"]["inference_ms"] is None
    text = scaling_markdown(cells)
    assert "| a | 5.00 | 1,448 | 4,096 | 11,585 | 1.50 |" in text
    assert "Training, ms" not in text
    assert scaling_plots(cells).svg().count("<circle") == 4 + 1 + 4


@pytest.mark.slow
def test_memory_is_that_of_one_pass():
    """Dense kernel attention holds a matrix of scores [2, 1024, 1024] in float32; linear attention holds none."""
    if not scaling._STATUS.is_file():
        pytest.skip("needs /proc")
    cells = measure_scaling({"kernel": Kernel(), "linear": Linear()}, SITE, (1024,), repeats=1)
    kernel, linear = cells
    matrix = 2 * 1024**2 * 4
    for bytes_ in (kernel.inference_bytes, kernel.training_bytes):
        assert 0.9 * matrix < bytes_ < 20 * matrix
    assert linear.inference_bytes < 0.5 * matrix
    assert linear.training_bytes < 0.9 * kernel.training_bytes


def test_what_would_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr(scaling, "_free_bytes", lambda: 2**20)
    monkeypatch.setattr(scaling, "_peak", lambda config, site, length, training: length**2)
    cells = measure_scaling({"a": Full(), "b": Linear()}, SITE, (512, 1024), repeats=1)
    assert all(cell.inference_ms is not None for cell in cells[:2])
    assert all(cell.inference_ms is None and cell.training_bytes is None for cell in cells[2:])


def test_where_nothing_could_be_measured_there_is_no_plot():
    cells = [LengthCost(variant="a", length=length) for length in (64, 128)]
    assert scaling_plots(cells) is None
    assert scaling_markdown(cells)


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from effitrans.attention import Full, Site\n"
        "from effitrans.evaluation.scaling import measure_scaling\n"
        "measure_scaling({'full': Full()}, Site(num_heads=1, num_key_value_heads=1, head_dim=4), (64,), repeats=1)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "RuntimeError: the process that measures memory could not start. A script" in done.stderr
