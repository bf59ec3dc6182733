"""Outputs of feed-forward networks as something to learn from."""

import pytest
import torch

from effitrans import Distillation, UsageError, distill, make_student, prune
from effitrans.distillation.objectives import DistillationBatch
from effitrans.distillation.objectives.feed_forward import FeedForward
from effitrans.distillation.recording import Recorder
from effitrans.pruning import Pruning
from tests.architectures.families import FAMILIES
from tests.distillation.test_distill import ALWAYS, _rows_of
from tests.training.helpers import bert, sentences


@pytest.mark.parametrize("family", [pytest.param(family, id=family.name) for family in FAMILIES])
def test_what_is_kept_is_what_leaves_the_networks(family):
    model, expected = family.model(), []
    recorder = Recorder(model, ["feed_forward"])
    for path in family.feed_forward.values():
        model.get_submodule(path).register_forward_hook(lambda module, args, output: expected.append(output))
    with torch.no_grad(), recorder.running():
        model(**family.inputs())
    kept = [output for stack in recorder.take()["feed_forward"].values() for output in stack]
    assert len(kept) == len(expected) == len(family.feed_forward)
    assert all(mine is theirs for mine, theirs in zip(kept, expected, strict=True))
    assert all(output is None for stack in recorder.take()["feed_forward"].values() for output in stack)
    model(**family.inputs())
    assert all(output is None for stack in recorder.take()["feed_forward"].values() for output in stack)


def test_the_error_is_that_of_feature_over_the_layers():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    sides = [tuple(torch.randn(2, 4, 6) for _ in range(layers)) for layers in (2, 4)]
    student, teacher = ({"feed_forward": {"encoder": side}} for side in sides)
    batch = DistillationBatch(student, teacher, {"attention_mask": mask})
    errors = []
    for mine, theirs in ((0, 1), (1, 3)):
        s, t = sides[0][mine], sides[1][theirs]
        error = (s - t).square().sum(-1) / t.square().sum(-1)
        errors.append(torch.stack([error[0].mean(), error[1, :2].mean()]).mean())
    objective = FeedForward(FeedForward.config_class(), batch)
    assert objective(batch).item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert objective.pairs == {"encoder": {1: 2, 2: 4}}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=() if f.name in ALWAYS else pytest.mark.slow) for f in FAMILIES],
)
@pytest.mark.parametrize("mapping", ["uniform", "dynamic"])
def test_every_family_learns_it(family, mapping):
    teacher = family.model()
    student = make_student(teacher, "layers=2")
    prune(student, Pruning(heads=0.5, ffn=0.5), inplace=True)
    config = Distillation(max_steps=12, batch_size=3, learning_rate=3e-3, log_every=1,
                          warmup_ratio=0, alpha=1, objective={"feed_forward": {"layer_mapping": mapping}})  # fmt: skip
    result = distill(student, teacher, _rows_of(family.inputs()), config)
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert min(losses[-3:]) < losses[0]


def test_gradient_checkpointing_changes_nothing():
    losses = []
    for checkpointing in (False, True):
        config = Distillation(
            max_steps=4, objective="feed_forward", alpha=1, gradient_checkpointing=checkpointing, log_every=1,
            learning_rate=1e-3,
        )  # fmt: skip
        student = bert(seed=1, dropout=0.0, num_hidden_layers=2)
        result = distill(student, bert(seed=2, num_hidden_layers=4), sentences(64), config)
        losses.append([entry["loss"] for entry in result.history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_a_network_that_was_removed_is_refused():
    student = bert(num_hidden_layers=2)
    prune(student, Pruning(keep_ffn_layers=[1]), inplace=True)
    with pytest.raises(UsageError, match="layer 1 of the encoder has none any more: use 'feature'"):
        distill(student, bert(), sentences(8), Distillation(max_steps=1, objective="feed_forward"))


def test_it_is_not_cached():
    with pytest.raises(ValueError, match="reads the outputs of feed-forward networks, which are not cached"):
        Distillation(objective="feed_forward", cache=True)
