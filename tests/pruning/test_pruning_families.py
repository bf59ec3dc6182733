"""Every family and every unit through one suite: pruned for real must equal masked, and must live on afterwards."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from effitrans import checkpoint
from effitrans.pruning import IMPORTANCE, Criterion, LayerPruning, Pruning, prune
from tests.architectures.families import FAMILIES, HEAD_DIM, THROUGH_INTERFACE, Family, logits, mask_inputs

CASES = {
    "heads": {"heads": 0.5},
    "heads-global": {"heads": 0.5, "scope": "global"},
    "ffn": {"ffn": 0.25},
    "ffn-global": {"ffn": 0.5, "scope": "global", "multiple_of": 1},
    "both": {"heads": 0.25, "ffn": 0.5},
}
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
generators = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.generates], ids=lambda family: family.name
)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A criterion whose scores are random and known: site name -> scores of its last use."""
    given: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(7)

    def score(model, sites, batches):
        for position, site in enumerate(sites):  # skewed in every other site, so that a global ranking tells them apart
            given[site.name] = torch.rand(site.units, generator=generator) ** (1 + 4 * (position % 2))
        return [given[site.name] for site in sites]

    monkeypatch.setitem(IMPORTANCE, "scripted", Criterion(score, needs_data=False))
    return given


def masked_twin(
    family: Family, model: transformers.PreTrainedModel, removed: dict[str, int], scores: dict[str, Tensor]
):
    """The unpruned model with the removed units silenced, and how many parameters they have."""
    twin = copy.deepcopy(model)
    parameters = 0
    for site, count in removed.items():
        units = scores[site].argsort(stable=True)[:count].tolist()
        if site in family.attention:
            size = family.queries * HEAD_DIM
            features = [unit * size + i for unit in units for i in range(size)]
            for output in family.attention[site]:
                mask_inputs(twin, output, features)
            parameters += count * family.parameters_of_head(site)
        else:
            mask_inputs(twin, family.feed_forward[site], units)
            parameters += count * family.parameters_of_neuron()
    return twin, parameters


def units_removed(model: transformers.PreTrainedModel) -> dict[str, int]:
    return checkpoint.history(model)[-1]["summary"]["units_removed"]


@families
@pytest.mark.parametrize("case", CASES)
def test_pruned_equals_masked_twin(family: Family, case: str, scripted: dict[str, Tensor]) -> None:
    model = family.model()
    before = copy.deepcopy(model.state_dict())
    batch = family.inputs()

    pruned = prune(model, Pruning(method="scripted", **CASES[case]))

    removed = units_removed(pruned)
    twin, parameters = masked_twin(family, model, removed, scripted)
    assert model.num_parameters() - pruned.num_parameters() == parameters > 0
    sites = {"heads": len(family.attention), "ffn": len(family.feed_forward)}
    wanted = sum(
        round(CASES[case].get(kind, 0) * count * (family.units if kind == "heads" else 64))
        for kind, count in sites.items()
    )
    assert sum(removed.values()) == wanted
    if "scope" in CASES[case]:
        assert len({removed.get(site, 0) for site in scripted}) > 1, "global ranking should give layers different sizes"
    torch.testing.assert_close(logits(pruned, batch), logits(twin, batch), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(pruned, batch), logits(model, batch), atol=1e-3)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    pruned.train()
    pruned(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", THROUGH_INTERFACE, ids=lambda family: family.name)
def test_eager_attention(family: Family, scripted: dict[str, Tensor]) -> None:
    model = family.model()
    pruned = prune(model, Pruning(method="scripted", heads=0.5, scope="global"))
    assert model.config._attn_implementation != "eager", "the other tests run what is the default"
    pruned.set_attn_implementation("eager")
    model.set_attn_implementation("eager")
    twin, _ = masked_twin(family, model, units_removed(pruned), scripted)
    torch.testing.assert_close(logits(pruned, family.inputs()), logits(twin, family.inputs()), rtol=1e-5, atol=1e-5)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_reload_is_bit_equal(family: Family, dtype: torch.dtype, scripted: dict[str, Tensor], tmp_path: Path) -> None:
    family.model().save_pretrained(tmp_path / "original")
    model = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "original", dtype=dtype)
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in family.inputs().items()}
    pruned = prune(model, Pruning(method="scripted", heads=0.5, ffn=0.5, keep_layers=(0, 2), scope="global"))
    assert {p.dtype for p in pruned.parameters()} == {p.dtype for p in model.parameters()}
    pruned.save_pretrained(tmp_path / "pruned")
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "pruned", dtype=dtype)
    assert torch.equal(logits(loaded, batch), logits(pruned, batch))
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in pruned.named_parameters()}
    loaded.train()
    loaded(**batch).loss.backward()


@pytest.mark.slow
@families
def test_fresh_process_reload_is_bit_equal(family: Family, scripted: dict[str, Tensor], tmp_path: Path) -> None:
    pruned = prune(family.model(), Pruning(method="scripted", heads=0.5, ffn=0.5, hidden=0.25, keep_layers=(0, 2)))
    pruned.save_pretrained(tmp_path / "model")
    batch = family.inputs()
    torch.save(batch, tmp_path / "batch.pt")
    script = f"""
import effitrans, torch, transformers
torch.set_num_threads({torch.get_num_threads()})
model = transformers.{family.auto_class}.from_pretrained({str(tmp_path / "model")!r}).eval()
batch = torch.load({str(tmp_path / "batch.pt")!r})
with torch.no_grad():
    torch.save(model(**batch).logits, {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(pruned, batch))


@generators
@pytest.mark.parametrize("case", ["heads-global", "layers"])
def test_generation_with_cache(family: Family, case: str, scripted: dict[str, Tensor]) -> None:
    settings = {"heads": 0.5, "scope": "global"} if case == "heads-global" else {"keep_layers": 2, "heads": 0.25}
    pruned = prune(family.model(), Pruning(method="scripted", **settings))
    inputs = {k: v for k, v in family.inputs().items() if k != "labels"}
    generated = [
        pruned.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    ]
    assert torch.equal(*generated)


@families
def test_second_pruning(family: Family, scripted: dict[str, Tensor]) -> None:
    once = prune(family.model(), Pruning(method="scripted", heads=0.25, ffn=0.25, scope="global"))
    twice = prune(once, Pruning(method="scripted", heads=0.34, ffn=0.5, multiple_of=1))
    removed = units_removed(twice)
    scores = {site: score for site, score in scripted.items() if site in removed}
    twin, parameters = masked_twin(family, once, removed, scores)
    assert once.num_parameters() - twice.num_parameters() == parameters
    torch.testing.assert_close(logits(twice, family.inputs()), logits(twin, family.inputs()), rtol=1e-5, atol=1e-5)
    assert len(checkpoint.history(twice)) == 2


@families
def test_layers_go(family: Family) -> None:
    model = family.model()
    pruned = prune(model, LayerPruning(keep=(0, 2)))
    twin = copy.deepcopy(model)
    for stack in _stack_paths(family):
        layers = twin.get_submodule(stack)
        del layers[1]
    for field in family.layers_field:
        assert getattr(pruned.config, field) == 2
    # Nothing about a shallower model needs a manifest, unless a layer's position changes what it computes.
    lost = {name for name, _ in model.named_parameters()} - {name for name, _ in pruned.named_parameters()}
    assert lost
    assert all(".2." in name for name in lost)
    assert sum(p.numel() for p in twin.parameters()) == pruned.num_parameters()
    if family.name not in ("qwen2",):  # the twin's layers would take the attention type of their new position
        torch.testing.assert_close(logits(pruned, family.inputs()), logits(twin, family.inputs()))


@families
def test_first_layer_may_go(family: Family, tmp_path: Path) -> None:
    pruned = prune(family.model(), LayerPruning(keep=(1, 2)))
    pruned.save_pretrained(tmp_path)
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, family.inputs()), logits(pruned, family.inputs()))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.tied], ids=lambda family: family.name)
def test_tied_embeddings_stay_tied(family: Family, scripted: dict[str, Tensor]) -> None:
    pruned = prune(family.model(), Pruning(method="scripted", heads=0.5, ffn=0.5))
    assert pruned.get_output_embeddings().weight is pruned.get_input_embeddings().weight


def _stack_paths(family: Family) -> set[str]:
    paths = [path for outputs in family.attention.values() for path in outputs]
    return {re.split(r"\.\d+\.", path)[0] for path in paths}
