"""Query heads taken out of their groups, equally many from each."""

import copy
from pathlib import Path

import pytest
import torch
import transformers

from effitrans import checkpoint
from effitrans.architectures import adapter
from effitrans.pruning import HeadPruning, prune
from effitrans.pruning.importance import magnitude
from effitrans.pruning.units.heads import head_sites
from tests.architectures.families import FAMILIES, HEAD_DIM, HIDDEN, Family, logits, mask_inputs

GROUPED = [family for family in FAMILIES if family.queries > 1]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("family", GROUPED, ids=lambda family: family.name)
def test_queries_leave_their_groups(family: Family, scope: str, tmp_path: Path) -> None:
    model = family.model()
    config = HeadPruning(ratio=0.5, grouped_queries="queries", scope=scope)  # type: ignore[arg-type]
    pruned = prune(model, config)

    twin = copy.deepcopy(model)
    sites = head_sites(adapter(model).layers, "queries")
    removed = 0
    for site, score in zip(sites, magnitude.score(model, sites), strict=True):
        assert site.units == 8
        if scope == "global":  # each step takes a head of all four groups, so a layer loses none or all it can
            count = checkpoint.history(pruned)[-1]["summary"]["units_removed"].get(site.name, 0)
            assert count in (0, 4)
        else:
            count = 4
        heads = [2 * group + int(score[2 * group : 2 * group + 2].argmin()) for group in range(4)] if count else []
        mask_inputs(twin, family.attention[site.name][0], [h * HEAD_DIM + i for h in heads for i in range(HEAD_DIM)])
        removed += len(heads)
    bias = int(family.qkv_bias)
    assert model.num_parameters() - pruned.num_parameters() == removed * HEAD_DIM * (2 * HIDDEN + bias)
    torch.testing.assert_close(logits(pruned, family.inputs()), logits(twin, family.inputs()), rtol=1e-5, atol=1e-5)

    pruned.save_pretrained(tmp_path)
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, family.inputs()), logits(pruned, family.inputs()))
    inputs = {k: v for k, v in family.inputs().items() if k != "labels"}
    with_cache, without = (loaded.generate(**inputs, max_new_tokens=6, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)


def test_groups_after_queries() -> None:
    family = next(family for family in GROUPED if family.name == "llama")
    once = prune(family.model(), HeadPruning(ratio=0.5, grouped_queries="queries"))
    twice = prune(once, HeadPruning(ratio=0.5))
    attention = twice.model.layers[0].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features) == (2 * HEAD_DIM, 2 * HEAD_DIM)
    assert attention.num_key_value_groups == 1
    assert torch.isfinite(logits(twice, family.inputs())).all()
