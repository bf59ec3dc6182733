"""Importance measured once, kept in a file and used for several prunings; and the criteria beside Taylor."""

import copy
from pathlib import Path

import pytest
import torch

from effitrans.architectures import adapter
from effitrans.errors import UsageError
from effitrans.pruning import (
    IMPORTANCE,
    HeadPruning,
    Importance,
    Pruning,
    Scores,
    measure_importance,
    prune,
    prune_units,
)
from effitrans.pruning.importance import fisher, magnitude, movement, taylor, wanda
from effitrans.pruning.units.heads import head_sites
from effitrans.pruning.units.neurons import ffn_sites
from tests.architectures.families import FAMILIES, HEAD_DIM, Family, core_first, logits, mask_inputs

BY_NAME = {family.name: family for family in FAMILIES}
families = pytest.mark.parametrize("family", core_first())


def examples(family: Family) -> list[dict[str, torch.Tensor]]:
    batch = family.inputs()
    return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(3)]


@pytest.mark.parametrize("method", IMPORTANCE)
@families
def test_every_method_prunes_every_family(family: Family, method: str) -> None:
    model = family.model()
    before = copy.deepcopy(model.state_dict())
    pruned = prune(model, Pruning(heads=0.5, ffn=0.5, scope="global", method=method), [family.inputs()])
    assert pruned.num_parameters() < model.num_parameters()
    assert torch.isfinite(logits(pruned, family.inputs())).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_fisher_is_the_mean_square_of_single_gradients(name: str) -> None:
    family = BY_NAME[name]
    model = family.model()
    sites = [*head_sites(adapter(model).layers), *ffn_sites(adapter(model).layers)]
    alone = [taylor.score(model, sites, [example]) for example in examples(family)]
    together = fisher.score(model, sites, [family.inputs()])
    batch = family.inputs()
    # Where every example has as many labels the batch loss is the mean of the examples' losses.
    assert len({int((row != -100).sum()) for row in batch["labels"].reshape(3, -1)}) == 1
    for position, scores in enumerate(together):
        torch.testing.assert_close(scores, sum(one[position].square() for one in alone) / 3, rtol=1e-3, atol=1e-9)


def test_wanda_is_weights_times_inputs() -> None:
    family = BY_NAME["bert"]
    model = family.model()
    layer = model.bert.encoder.layer[1]
    seen = []
    handle = layer.output.dense.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits(model, family.inputs())
    handle.remove()
    real = family.inputs()["attention_mask"].bool()
    expected = (layer.output.dense.weight.square().sum(0) * seen[0][real].square().mean(0)).sqrt()
    neurons = ffn_sites(adapter(model).layers)[1]
    (scores,) = wanda.score(model, [neurons], examples(family))
    torch.testing.assert_close(scores, expected.detach())
    without_labels = [{k: v for k, v in family.inputs().items() if k != "labels"}]
    torch.testing.assert_close(wanda.score(model, [neurons], without_labels)[0], scores)


def test_movement_sums_gradient_times_weight() -> None:
    family = BY_NAME["gpt2"]
    model = family.model()
    neurons = ffn_sites(adapter(model).layers)[0]
    (scores,) = movement.score(model, [neurons], [family.inputs()])
    model(**family.inputs()).loss.backward()
    mlp = model.transformer.h[0].mlp
    up, down = mlp.c_fc.weight, mlp.c_proj.weight
    expected = -(up * up.grad).sum(0) - (down * down.grad).sum(1)
    torch.testing.assert_close(scores, expected.detach(), rtol=1e-4, atol=1e-6)


def test_random_depends_on_the_seed_alone() -> None:
    model = BY_NAME["bert"].model()
    first, again, other = (
        measure_importance(model, Importance(method="random", seed=seed)).values for seed in (0, 0, 1)
    )
    assert all(torch.equal(scores, again[name]) for name, scores in first.items())
    assert any(not torch.equal(scores, other[name]) for name, scores in first.items())


def test_l1_is_the_sum_of_absolute_weights() -> None:
    model = BY_NAME["distilbert"].model()
    site = ffn_sites(adapter(model).layers)[0]
    ffn = model.distilbert.transformer.layer[0].ffn
    expected = ffn.lin1.weight.abs().sum(1) + ffn.lin2.weight.abs().sum(0)
    torch.testing.assert_close(magnitude.score_l1(model, [site])[0], expected.detach())


@families
def test_one_measurement_serves_several_prunings(family: Family, tmp_path: Path) -> None:
    model = family.model()
    data = [family.inputs()]
    measure_importance(model, Importance(method="taylor"), data).save(tmp_path / "scores.safetensors")
    scores = Scores.load(tmp_path / "scores.safetensors")
    for ratio in (0.25, 0.5):
        for scope in ("layer", "global"):
            config = Pruning(heads=ratio, ffn=ratio, scope=scope, method="taylor")  # type: ignore[arg-type]
            reused, anew = prune_units(model, config, scores=scores), prune(model, config, data)
            assert reused.num_parameters() < model.num_parameters()
            assert torch.equal(logits(reused, family.inputs()), logits(anew, family.inputs()))


def test_scores_are_those_of_the_model_with_all_its_layers() -> None:
    family = BY_NAME["bert"]
    model = family.model()
    scores = measure_importance(model)
    pruned = prune_units(model, Pruning(heads=0.5, ffn=0.5, keep_layers=(1, 2)), scores=scores)
    kept = scores.values["head:bert.encoder.layer.1.attention.self"].argsort()[2:].sort().values
    rows = (kept[:, None] * HEAD_DIM + torch.arange(HEAD_DIM)).flatten()
    expected = model.bert.encoder.layer[1].attention.self.query.weight[rows]
    assert torch.equal(pruned.bert.encoder.layer[0].attention.self.query.weight, expected)


def test_scores_of_another_model_or_method_are_refused(tmp_path: Path) -> None:
    model = BY_NAME["bert"].model()
    scores = measure_importance(model)
    once = prune_units(model, HeadPruning(ratio=0.25), scores=scores)
    with pytest.raises(UsageError, match=r"measured on another model: they have 4 .* has 3 head"):
        prune_units(once, HeadPruning(ratio=0.5), scores=scores)
    with pytest.raises(UsageError, match="have none"):
        prune_units(BY_NAME["gpt2"].model(), HeadPruning(ratio=0.5), scores=scores)
    with pytest.raises(UsageError, match=r"'magnitude'.*asks for method 'taylor'"):
        prune_units(model, HeadPruning(ratio=0.5, method="taylor"), scores=scores)
    with pytest.raises(UsageError, match="measure again"):
        prune_units(model, HeadPruning(ratio=0.5, grouped_queries="queries"), scores=scores)
    with pytest.raises(UsageError, match="measures anew"):
        prune_units(model, Pruning(heads=0.5, steps=2), scores=scores)
    (tmp_path / "no").write_text("no")
    with pytest.raises(UsageError, match="no importance scores"):
        Scores.load(tmp_path / "no")


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
@families
def test_steps_end_at_the_ratio(family: Family, schedule: str) -> None:
    model = family.model()
    sizes: list[int] = []

    def recover(current) -> None:
        sizes.append(current.num_parameters())
        with torch.no_grad():
            for parameter in current.parameters():
                parameter.mul_(1.01)

    config = Pruning(heads=0.5, ffn=0.5, steps=4, schedule=schedule, multiple_of=1)  # type: ignore[arg-type]
    pruned = prune_units(model, config, recover=recover)
    once = prune(model, Pruning(heads=0.5, ffn=0.5, multiple_of=1))
    assert pruned.num_parameters() == once.num_parameters()
    assert model.num_parameters() > sizes[0] > sizes[1] > sizes[2] >= pruned.num_parameters()
    if schedule == "cubic":
        assert model.num_parameters() - sizes[0] > (model.num_parameters() - once.num_parameters()) / 4


def test_scripted_masks_match(tmp_path: Path) -> None:
    """Pruning by given scores equals silencing the units by hand."""
    family = BY_NAME["vit"]
    model = family.model()
    scores = measure_importance(model, Importance(method="wanda"), [family.inputs()])
    pruned = prune_units(model, Pruning(ffn=0.5, method="wanda"), scores=scores)
    twin = copy.deepcopy(model)
    for path, output in family.feed_forward.items():
        mask_inputs(twin, output, scores.values[f"neuron:{path}"].argsort(stable=True)[:32].tolist())
    torch.testing.assert_close(logits(pruned, family.inputs()), logits(twin, family.inputs()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_layers": 2, "steps": 2}, "steps=2 has no effect without heads, ffn or hidden"),
        ({"heads": 0.5, "schedule": "cubic"}, "schedule='cubic' has no effect in one step"),
        ({"heads": 0.5, "steps": 0}, "steps"),
    ],
)
def test_settings_without_effect_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pruning.parse(values)


def test_recover_needs_steps() -> None:
    with pytest.raises(UsageError, match="set steps to more than 1"):
        prune_units(BY_NAME["bert"].model(), HeadPruning(ratio=0.5), recover=lambda model: None)
