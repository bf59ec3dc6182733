"""Importance criteria against what they are defined by."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from effitrans.architectures import adapter
from effitrans.errors import UsageError
from effitrans.pruning import HeadPruning, LayerPruning, Pruning, prune
from effitrans.pruning.importance import magnitude, taylor
from effitrans.pruning.units import UNITS
from effitrans.pruning.units.heads import head_sites
from effitrans.pruning.units.neurons import ffn_sites
from tests.architectures.families import FAMILIES, HEAD_DIM, Family, mask_inputs, tokens

BY_NAME = {family.name: family for family in FAMILIES}
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def examples(family: Family) -> list[dict[str, Tensor]]:
    """The batch of the family, one example at a time."""
    batch = family.inputs()
    return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(3)]


def change_of_loss(family: Family, model: torch.nn.Module, output: str, features: list[int]) -> float:
    """Mean over examples of how far the loss moves when some inputs of an output module are silenced."""
    twin = copy.deepcopy(model)
    mask_inputs(twin, output, features)
    with torch.no_grad():
        changes = [float((twin(**example).loss - model(**example).loss).abs()) for example in examples(family)]
    return sum(changes) / len(changes)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit", "base-alibi"])
def test_taylor_ranks_by_true_change_of_loss(name: str) -> None:
    family = BY_NAME[name]
    model = family.model().double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in family.inputs().items()}
    family = Family(**{**vars(family), "inputs": lambda: batch})
    site = head_sites(adapter(model).layers)[1]
    output = family.attention[site.name][0]
    width = HEAD_DIM * family.queries
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # small contributions of different size: there the first order is the whole truth
        weight = model.get_submodule(output).weight
        for head, size in enumerate(torch.tensor([2e-3, 1e-4, 1e-2, 5e-4])[torch.randperm(4, generator=generator)]):
            features = slice(head * width, (head + 1) * width)
            (weight[features] if name == "gpt2" else weight[:, features]).mul_(size)
    (scores,) = taylor.score(model, [site], examples(family))
    truth = torch.tensor(
        [
            change_of_loss(family, model, output, list(range(head * width, (head + 1) * width)))
            for head in range(site.units)
        ]
    )
    assert scores.argsort().tolist() == truth.argsort().tolist()
    torch.testing.assert_close(scores, truth, rtol=0.1, atol=0)


@families
def test_taylor_of_unused_units_is_zero(family: Family) -> None:
    model = family.model()
    heads, neurons = head_sites(adapter(model).layers)[-1], ffn_sites(adapter(model).layers)[-1]
    width = HEAD_DIM * family.queries
    for output in family.attention[heads.name]:
        mask_inputs(model, output, list(range(2 * width, 3 * width)))
    mask_inputs(model, family.feed_forward[neurons.name], [5, 11])
    head_scores, neuron_scores = taylor.score(model, [heads, neurons], [family.inputs()])
    assert head_scores[2] == 0
    assert (head_scores[[0, 1, 3]] > 0).all()
    assert neuron_scores[[5, 11]].tolist() == [0, 0]
    assert (neuron_scores > 0).sum() > 20


@families
def test_taylor_leaves_the_model_as_it_was(family: Family) -> None:
    model = family.model()
    frozen = next(model.parameters()).requires_grad_(False)
    model.train()
    inner = next(module for name, module in model.named_modules() if name.count(".") == 2)
    inner.eval()
    before = copy.deepcopy(model.state_dict())
    taylor.score(model, head_sites(adapter(model).layers), [family.inputs()])
    assert model.training
    assert not inner.training
    assert [p.requires_grad for p in model.parameters()] == [p is not frozen for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_taylor_does_not_depend_on_batch_size() -> None:
    family = BY_NAME["bert"]
    model = family.model()
    sites = head_sites(adapter(model).layers)
    together = taylor.score(model, sites, [family.inputs()])
    alone = taylor.score(model, sites, examples(family))
    for left, right in zip(together, alone, strict=True):
        torch.testing.assert_close(left, right)


def test_taylor_of_bf16_is_near_fp32() -> None:
    family = BY_NAME["llama"]
    model = family.model()
    sites = ffn_sites(adapter(model).layers)
    exact = taylor.score(model, sites, [family.inputs()])
    half = model.to(torch.bfloat16)
    rough = taylor.score(half, ffn_sites(adapter(half).layers), [family.inputs()])
    for left, right in zip(exact, rough, strict=True):
        assert torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.98


def test_shared_heads_count_in_all_layers() -> None:
    family = BY_NAME["t5"]
    model = family.model()
    site = head_sites(adapter(model).layers)[0]
    mask_inputs(model, family.attention[site.name][0], list(range(HEAD_DIM)))
    (scores,) = taylor.score(model, [site], [family.inputs()])
    assert scores[0] > 0, "head 0 is silent in one layer only"


def test_magnitude_is_the_norm_of_all_weights_of_a_unit() -> None:
    model = BY_NAME["bert"].model()
    layer = model.bert.encoder.layer[1]
    attention, output = layer.attention.self, layer.attention.output.dense
    heads = magnitude.score(model, head_sites(adapter(model).layers))[1]
    for head in range(4):
        rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        parts = [m.weight[rows].flatten() for m in (attention.query, attention.key, attention.value)]
        torch.testing.assert_close(heads[head], torch.cat([*parts, output.weight[:, rows].flatten()]).norm().detach())
    neurons = magnitude.score(model, ffn_sites(adapter(model).layers))[1]
    up, down = layer.intermediate.dense.weight, layer.output.dense.weight
    torch.testing.assert_close(neurons, (up.square().sum(1) + down.square().sum(0)).sqrt().detach())


def test_magnitude_of_fused_and_transposed_weights() -> None:
    model = BY_NAME["gpt2"].model()
    attention = model.transformer.h[0].attn
    scores = magnitude.score(model, head_sites(adapter(model).layers))[0]
    thirds = attention.c_attn.weight.reshape(32, 3, 4, HEAD_DIM)
    for head in range(4):
        rows = attention.c_proj.weight[head * HEAD_DIM : (head + 1) * HEAD_DIM]
        expected = (thirds[:, :, head].square().sum() + rows.square().sum()).sqrt()
        torch.testing.assert_close(scores[head], expected.detach())


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_layers_by_importance(method: str) -> None:
    family = BY_NAME["base-decoder"]
    model = family.model()
    layer = adapter(model).layers[1]
    with torch.no_grad():  # a layer that neither weighs nor does anything
        for part in UNITS["layers"].sites([layer])[0].slices:
            part.module.weight.mul_(1e-6)  # type: ignore[operator]
    config = LayerPruning(keep=2, layer_choice="importance", method=method)
    pruned = prune(model, config, [family.inputs()])
    assert pruned.config.effitrans_history[-1]["summary"]["layers_kept"] == {"decoder": [0, 2]}


def encoded() -> list[dict[str, list[int] | int]]:
    return [{"input_ids": row, "labels": i % 2} for i, row in enumerate(tokens(3, batch=40).tolist())]


@pytest.mark.parametrize(
    "data",
    [
        encoded(),
        Dataset.from_list(encoded()),
        DataLoader(
            encoded(),  # type: ignore[arg-type]
            batch_size=8,
            collate_fn=lambda rows: {
                "input_ids": torch.tensor([row["input_ids"] for row in rows]),
                "labels": torch.tensor([row["labels"] for row in rows]),
            },
        ),
    ],
    ids=["list", "dataset", "loader"],
)
def test_calibration_data(data: object) -> None:
    model = BY_NAME["bert"].model()
    config = HeadPruning(ratio=0.5, method="taylor", calibration_examples=20, batch_size=8)
    pruned = [prune(model, config, data) for _ in range(2)]
    first, second = (model.state_dict() for model in pruned)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_calibration_on_a_task(tiny_teacher: Path, tiny_task: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_teacher)
    config = Pruning(heads=0.5, ffn=0.5, method="taylor", scope="global", calibration_examples=16)
    pruned = prune(model, config, tiny_task)
    assert pruned.num_parameters() < model.num_parameters()


def test_seed_draws_other_examples() -> None:
    from effitrans.pruning.calibration import criterion_batches

    model = BY_NAME["bert"].model()
    drawn = [
        criterion_batches(
            model, Pruning(heads=0.5, method="taylor", calibration_examples=8, seed=seed), Dataset.from_list(encoded())
        )[0]["input_ids"]
        for seed in (0, 0, 1)
    ]
    assert drawn[0].shape == (8, 7)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_no_loss_is_refused() -> None:
    family = BY_NAME["bert"]
    batch = {name: value for name, value in family.inputs().items() if name != "labels"}
    with pytest.raises(UsageError, match="no labels that it takes"):
        prune(family.model(), HeadPruning(ratio=0.5, method="taylor"), [batch])
