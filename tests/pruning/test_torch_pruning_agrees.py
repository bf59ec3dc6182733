"""torch-pruning's dependency graph, where it understands the model, cuts what the adapters cut."""

import copy

import pytest
import torch

from effitrans.architectures import adapter
from effitrans.pruning.units.neurons import ffn_sites
from tests.architectures.families import FAMILIES, logits

BY_NAME = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "llama"])
def test_ffn_groups_agree(name: str) -> None:
    import torch_pruning as tp

    family = BY_NAME[name]
    model = family.model()
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    neurons = [3, 8, 60]
    ffn_sites(adapter(ours).layers)[1].remove(neurons)

    inputs = {key: value for key, value in family.inputs().items() if key not in ("labels", "attention_mask")}
    theirs.config.use_cache = False
    graph = tp.DependencyGraph().build_dependency(
        theirs, example_inputs=inputs, forward_fn=lambda model, batch: model(**batch).logits
    )
    up = adapter(theirs).layers[1].feed_forward.inputs[0]
    group = graph.get_pruning_group(up, tp.prune_linear_out_channels, idxs=neurons)
    assert graph.check_pruning_group(group)
    group.prune()

    expected = theirs.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.state_dict().items())
    torch.testing.assert_close(logits(ours, family.inputs()), logits(theirs, family.inputs()))
