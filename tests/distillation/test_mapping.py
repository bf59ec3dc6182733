"""Which layer follows which."""

import itertools

import pytest
import torch

from effitrans import Distillation, UsageError, checkpoint, distill, make_student, prune
from effitrans.architectures import adapter
from effitrans.distillation.mapping import from_kept, last, map_layers, nearest, skip, uniform
from effitrans.distillation.student import kept_layers
from effitrans.pruning import Pruning, prune_units
from tests.training.helpers import bert, sentences


@pytest.mark.parametrize(
    ("mapping", "student", "teacher", "expected"),
    [
        (uniform, 3, 6, {0: 0, 1: 2, 2: 4, 3: 6}),
        (uniform, 4, 4, {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}),
        (uniform, 1, 12, {0: 0, 1: 12}),
        (uniform, 2, 1, {0: 0, 1: 0, 2: 1}),
        (last, 3, 12, {0: 0, 1: 10, 2: 11, 3: 12}),
        (last, 2, 2, {0: 0, 1: 1, 2: 2}),
        (skip, 3, 6, {0: 0, 1: 1, 2: 3, 3: 6}),
        (skip, 1, 4, {0: 0, 1: 1}),
    ],
)
def test_named_mappings(mapping, student, teacher, expected):
    assert mapping(student, teacher) == expected
    assert map_layers(mapping.__name__, student, teacher) == expected


@pytest.mark.parametrize("name", ["last", "skip"])
def test_a_student_deeper_than_the_teacher(name):
    with pytest.raises(UsageError, match=r"at least the student's 3 layers.*'uniform'"):
        map_layers(name, 3, 2)


def test_explicit_mapping():
    assert map_layers({1: 3}, 2, 4) == {1: 3}
    with pytest.raises(UsageError, match=r"student has hidden states 0 \(embeddings\) to 2, received 3"):
        map_layers({3: 3}, 2, 4)
    with pytest.raises(UsageError, match=r"teacher has hidden states 0 \(embeddings\) to 4, received 5"):
        map_layers({2: 5}, 2, 4)


def test_skip_follows_a_copy_of_the_teacher():
    """The layers of `layers=N` are those of the mapping, each with its own original."""
    teacher = bert(num_hidden_layers=5)
    student = make_student(teacher, "layers=3")
    for mine, theirs in skip(3, 5).items():
        if mine:
            mine, theirs = student.bert.encoder.layer[mine - 1], teacher.bert.encoder.layer[theirs - 1]
            assert torch.equal(mine.output.dense.weight, theirs.output.dense.weight)


def test_skip_follows_pruning():
    teacher = bert(num_hidden_layers=6)
    student = prune(prune(teacher, Pruning(keep_layers=(0, 1, 3, 5))), Pruning(keep_layers=(1, 2)))
    kept = kept_layers(student, teacher)
    assert kept == {"encoder": [1, 3]}
    assert map_layers("skip", 2, 6, kept["encoder"]) == from_kept([1, 3]) == {0: 0, 1: 2, 2: 4}
    assert kept_layers(make_student(student, "layers=1"), teacher) == {"encoder": [1]}
    adapter(student).drop_layers({"encoder": [1]})
    assert kept_layers(student, teacher) == {}, "a layer went that no history tells of"
    assert kept_layers(bert(), teacher) == {}


def test_skip_follows_a_copy_that_is_pruned_further():
    teacher = bert(num_hidden_layers=6)
    student = prune(make_student(teacher, "layers=3"), Pruning(keep_layers=(0, 2)))
    assert kept_layers(student, teacher) == {"encoder": [0, 5]}


def test_skip_does_not_take_the_layers_of_another_model():
    """Neither model has a history, but the layers that went are not the teacher's, which has fewer."""
    student = prune(bert(num_hidden_layers=6), Pruning(keep_layers=(0, 5)))
    assert kept_layers(student, bert(num_hidden_layers=4)) == {}
    config = Distillation(max_steps=1, objective={"feature": {"layer_mapping": "skip"}}, alpha=1)
    distill(student, bert(num_hidden_layers=4), sentences(4), config)


def test_skip_follows_layers_while_the_rest_is_pruned_in_steps():
    teacher, seen = bert(num_hidden_layers=4), []
    config = Pruning(keep_layers=(1, 2), ffn=0.5, steps=2)
    student = prune_units(teacher, config, recover=lambda model: seen.append(kept_layers(model, teacher)))
    assert seen == [{"encoder": [1, 2]}]
    assert kept_layers(student, teacher) == {"encoder": [1, 2]}
    layers, units = checkpoint.history(student)
    assert layers["summary"]["parameters_after"] == units["summary"]["parameters_before"]
    assert teacher.num_parameters() == layers["summary"]["parameters_before"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 3), (3, 5), (2, 6)], ids=str)
def test_nearest_is_the_best_of_all_monotone_assignments(shape):
    for seed in range(5):
        costs = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        every = itertools.combinations(range(shape[1]), shape[0])
        best = min(every, key=lambda columns: sum(costs[row, column] for row, column in enumerate(columns)))
        assert nearest(costs) == list(best)
