"""Pruning models whose attention was swapped: operators with parameters follow their heads."""

from pathlib import Path

import pytest
import torch
import transformers

from effitrans import checkpoint
from effitrans.attention import Linear, Local, swap_attention
from effitrans.pruning import HeadPruning, Pruning, prune
from effitrans.quantization import Int8, quantize
from tests.architectures.families import FAMILIES, HEAD_DIM, Family, logits, mask_inputs

BY_NAME = {family.name: family for family in FAMILIES}
HEDGEHOG = Linear(feature_map="hedgehog", feature_dim=4)


def swapped(family: Family) -> transformers.PreTrainedModel:
    """Linear attention with learned maps a head, different in every head, in all layers."""
    model = swap_attention(family.model(), HEDGEHOG)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention_operator" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("grouped", ["groups", "queries"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "base-decoder"])
def test_operators_follow_their_heads(name: str, grouped: str) -> None:
    family = BY_NAME[name]
    model = swapped(family)
    config = HeadPruning(ratio=0.5, scope="global", method="random", grouped_queries=grouped)  # type: ignore[arg-type]
    pruned = prune(model, config)

    twin = swapped(family)
    from effitrans.architectures import adapter
    from effitrans.pruning.importance import random
    from effitrans.pruning.units.heads import head_sites

    sites = head_sites(adapter(twin).layers, grouped)  # type: ignore[arg-type]
    gone = checkpoint.history(pruned)[-1]["summary"]["units_removed"]
    parameters = 0
    for site, score in zip(sites, random.score(twin, sites), strict=True):
        size = site.units // site.blocks
        count = gone.get(site.name, 0) // site.blocks
        units = [
            block * size + int(unit)
            for block in range(site.blocks)
            for unit in score.reshape(site.blocks, size)[block].argsort(stable=True)[:count]
        ]
        width = family.queries * HEAD_DIM if grouped == "groups" else HEAD_DIM
        mask_inputs(twin, family.attention[site.name][0], [unit * width + i for unit in units for i in range(width)])
        parameters += site.parameters_of(units)
        heads = len(units) * (1 + family.queries if grouped == "groups" and family.queries > 1 else 1)
        heads = len(units) * 2 if family.queries == 1 else heads
        parameters += heads * 4 * HEAD_DIM
    assert model.num_parameters() - pruned.num_parameters() == parameters > 0
    torch.testing.assert_close(logits(pruned, family.inputs()), logits(twin, family.inputs()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("operator", [HEDGEHOG, Local(window=3)], ids=["hedgehog", "local"])
def test_swap_prune_quantize_reload(name: str, operator, tmp_path: Path) -> None:
    family = BY_NAME[name]
    model = swap_attention(family.model(), operator)
    pruned = prune(model, Pruning(heads=0.5, ffn=0.5, keep_layers=(0, 2), scope="global"))
    pruned(**family.inputs()).loss.backward()
    small = quantize(pruned, Int8())
    for stage, made in (("pruned", pruned.eval()), ("small", small)):
        made.save_pretrained(tmp_path / stage)
        loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path / stage)
        assert torch.equal(logits(loaded, family.inputs()), logits(made, family.inputs())), stage
    operators = [module for name, module in loaded.named_modules() if name.endswith("attention_operator")]
    assert len(operators) == 2
    assert all(module.site.num_heads < 4 * family.queries for module in operators[:1])
