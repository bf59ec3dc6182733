"""Learned gates: their arithmetic, that the cut model is the gated one, that targets are met or the miss is named."""

import math
from pathlib import Path

import datasets
import pytest
import torch
import transformers

from effitrans import checkpoint
from effitrans.architectures import adapter
from effitrans.errors import GateMissed, UsageError
from effitrans.pruning import L0Pruning, prune
from effitrans.pruning.l0 import learn
from effitrans.pruning.l0.gates import BETA, GAMMA, ZETA, Gates, attached
from effitrans.pruning.l0.learn import closed_units, fold
from effitrans.pruning.sites import PruningSite
from effitrans.pruning.units.heads import head_sites
from effitrans.pruning.units.neurons import ffn_sites
from tests.architectures.families import FAMILIES, Family, core_first, logits, tokens

BY_NAME = {family.name: family for family in FAMILIES}
QUICK = {"max_steps": 60, "batch_size": 8, "learning_rate": 1e-3, "gate_learning_rate": 0.3, "multiple_of": 1}


def rows(count: int = 64) -> datasets.Dataset:
    ids = tokens(seed=4, batch=count, length=7)
    return datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 1] % 2).tolist()})


def sites_of(model: transformers.PreTrainedModel) -> list[PruningSite]:
    layers = adapter(model).layers
    return [*head_sites(layers), *ffn_sites(layers)]


def test_open_probability_is_that_of_the_draws() -> None:
    site = ffn_sites(adapter(BY_NAME["bert"].model()).layers)[0]
    gates = Gates([site])
    with torch.no_grad():
        gates.log_alpha[0].copy_(torch.linspace(-4, 4, site.units))
    draws = []
    for _ in range(4000):
        gates.draw()
        draws.append(gates.values[0] > 0)
    share = torch.stack(draws).float().mean(0)
    torch.testing.assert_close(share, gates.open_probability()[0].detach(), rtol=0, atol=0.04)
    assert gates.open_probability()[0][0].item() == pytest.approx(
        1 / (1 + math.exp(4 + BETA * math.log(-GAMMA / ZETA))), rel=1e-5
    )


@pytest.mark.parametrize("family", core_first())
def test_the_cut_model_is_the_gated_one(family: Family) -> None:
    model = family.model()
    sites = sites_of(model)
    gates = Gates(sites).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for log_alpha in gates.log_alpha:
            log_alpha.copy_(torch.randn(log_alpha.shape, generator=generator) * 2 - 2)
    closed = closed_units(gates, sites, multiple_of=1)
    assert all(len(units) < site.units for site, units in zip(sites, closed, strict=True))
    assert sum(1 for units in closed if units) > len(sites) / 2
    with torch.no_grad():
        for log_alpha, units in zip(gates.log_alpha, closed, strict=True):
            log_alpha[units] = -50
    before = logits(model, family.inputs())
    with attached(model, gates, sites):
        expected = logits(model, family.inputs())
    assert torch.equal(logits(model, family.inputs()), before)
    fold(gates, sites, closed)
    for site, units in zip(sites, closed, strict=True):
        site.remove(units)
    torch.testing.assert_close(logits(model, family.inputs()), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, before, atol=1e-3)


@pytest.mark.parametrize("targets", [{"heads": 0.5, "ffn": 0.6}, {"ratio": 0.5}], ids=["each", "together"])
def test_targets_are_met(targets: dict[str, float], tmp_path: Path) -> None:
    family = BY_NAME["bert"]
    model = family.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Four heads a layer cannot come nearer than a part of one.
    pruned = prune(model, L0Pruning(**targets, tolerance=0.1, **QUICK), rows())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    summary = checkpoint.history(pruned)[-1]["summary"]
    names = {"ratio": "heads and neurons"}
    for name, share in targets.items():
        assert share - 0.1 <= summary["shares_removed"][names.get(name, name)] <= share + 0.2
    sites = sites_of(model)
    lost = sum(site.parameters_of(range(summary["units_removed"].get(site.name, 0))) for site in sites)
    assert model.num_parameters() - pruned.num_parameters() == lost > 0
    assert not any(name.startswith(learn.CHILD) for name, _ in pruned.named_parameters())
    assert not pruned.training
    pruned.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, family.inputs()), logits(pruned, family.inputs()))
    again = prune(family.model(), L0Pruning(**targets, tolerance=0.1, **QUICK), rows())
    assert torch.equal(logits(again, family.inputs()), logits(pruned, family.inputs()))


def test_gates_of_useless_units_close_first() -> None:
    model = BY_NAME["bert"].model()
    useless = list(range(0, 64, 2))
    with torch.no_grad():
        for layer in adapter(model).layers:
            layer.feed_forward.output.weight[:, useless] = 0
    # A steady learning rate of nearly nothing: the weights stay useless, and only the gates learn.
    config = L0Pruning(ffn=0.5, tolerance=0.1, **(QUICK | {"learning_rate": 1e-9, "max_steps": 120}))
    seen: list[list[int]] = []
    original = learn.closed_units

    def noted(*arguments):
        seen.extend(original(*arguments))
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "closed_units", noted)
        prune(model, config, rows())
    hits = sum(unit in useless for units in seen for unit in units)
    assert hits / sum(len(units) for units in seen) > 0.6


def test_a_missed_target_is_named() -> None:
    with pytest.raises(GateMissed, match=r"closed on \d.*% of ffn, \d+\.\d points less than the 80\.0% asked for"):
        prune(BY_NAME["bert"].model(), L0Pruning(ffn=0.8, **(QUICK | {"max_steps": 2})), rows())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing to prune"),
        ({"ratio": 0.5, "ffn": 0.5}, "leave heads and ffn out"),
        ({"ratio": 1.0}, "ratio"),
        ({"ffn": 0.5, "rise": 1.0}, "rise"),
    ],
)
def test_config_is_checked(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        L0Pruning.parse(values)


def test_refused() -> None:
    model = BY_NAME["bert"].model()
    with pytest.raises(UsageError, match="there is none: give a task"):
        prune(model, L0Pruning(ffn=0.5))
    with pytest.raises(UsageError, match="gates learn on a copy"):
        prune(model, L0Pruning(ffn=0.5), rows(), inplace=True)
    with pytest.raises(UsageError, match=r"a share of 0\.9 of heads cannot go: .* at most 0\.75 can"):
        prune(model, L0Pruning(heads=0.9), rows())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "t5", "llama"])
def test_other_families_learn(name: str) -> None:
    family = BY_NAME[name]
    ids = tokens(seed=4, batch=32, length=7)
    data = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})
    pruned = prune(family.model(), L0Pruning(ratio=0.5, tolerance=0.15, **QUICK), data)
    assert pruned.num_parameters() < family.model().num_parameters()
    assert torch.isfinite(logits(pruned, family.inputs())).all()
