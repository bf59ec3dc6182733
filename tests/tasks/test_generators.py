"""Generated tasks: seeded, disjoint, and right."""

import statistics
from collections import Counter

import pytest

from effitrans.errors import UsageError
from effitrans.tasks import load_task
from effitrans.tasks.generators import GENERATORS
from effitrans.tasks.generators.listops import ListOps, value, write


def evaluate(source: str) -> int:
    """The value of an expression, worked out on a stack rather than on the tree."""
    functions = {
        "[MIN": min,
        "[MAX": max,
        "[MED": lambda values: int(statistics.median(values)),
        "[SM": lambda values: sum(values) % 10,
    }
    stack: list = []
    for token in source.split():
        if token == "]":
            values = []
            while not isinstance(stack[-1], str):
                values.append(stack.pop())
            stack.append(functions[stack.pop()](values))
        else:
            stack.append(token if token.startswith("[") else int(token))
    assert len(stack) == 1
    return stack[0]


def test_listops_labels_are_the_values():
    columns = ListOps(max_length=200, train_rows=300).columns("train")
    assert [evaluate(source) for source in columns["source"]] == columns["label"]
    used = Counter(token for source in columns["source"] for token in source.split())
    assert {"[MIN", "[MAX", "[MED", "[SM"} <= set(used)
    assert set(columns["label"]) == set(range(10))


def test_listops_example_of_the_paper():
    tree = ("MAX", [2, 9, ("MIN", [4, 7]), 0])
    assert write(tree) == "[MAX 2 9 [MIN 4 7 ] 0 ]"
    assert value(tree) == 9


@pytest.mark.parametrize(("low", "high"), [(4, 12), (10, 60), (100, 200), (500, 2000)])
def test_listops_lengths_are_in_range(low, high):
    columns = ListOps(min_length=low, max_length=high, train_rows=20, validation_rows=5, test_rows=5).columns("test")
    lengths = [len(source.split()) for source in columns["source"]]
    assert low <= min(lengths) <= max(lengths) <= high


def test_listops_splits_share_no_expression():
    made = ListOps(train_rows=300, validation_rows=100, test_rows=100)
    sources = [source for split in made.splits for source in made.columns(split)["source"]]
    assert len(set(sources)) == len(sources) == 500


def test_listops_depth_is_bounded():
    sources = ListOps(max_depth=2, train_rows=200).columns("train")["source"]
    for source in sources:
        depth = deepest = 0
        for token in source.split():
            depth += token.startswith("[") - (token == "]")
            deepest = max(deepest, depth)
        assert deepest <= 2


def test_listops_that_cannot_be_made_is_refused():
    with pytest.raises(UsageError, match="is above max_length"):
        load_task(_listops(min_length=50, max_length=20))
    with pytest.raises(UsageError, match="widen the range"):
        load_task(_listops(min_length=90, max_length=100, max_depth=1, max_arguments=3)).rows("train")


def _listops(**options):
    return {
        "name": "x", "kind": "sequence-classification", "inputs": "source", "target": "label",
        "data": {"generator": "listops", **options},
    }  # fmt: skip


@pytest.mark.parametrize("name", GENERATORS)
def test_same_seed_same_data(name):
    few = {"train_rows": 50, "validation_rows": 20, "test_rows": 20} if name == "listops" else {}
    first, again, other = (GENERATORS[name](seed=seed, **few) for seed in (0, 0, 1))
    assert first.columns("test") == again.columns("test")
    assert first.columns("test") != other.columns("test")


def test_digits_are_split_by_shares_of_each_digit():
    task = load_task("digits")
    counts = {split: Counter(task.rows(split)["label"]) for split in task.splits}
    sizes = {split: sum(count.values()) for split, count in counts.items()}
    assert sizes == {"train": 1168, "validation": 270, "test": 359}
    for split, count in counts.items():
        assert max(count.values()) - min(count.values()) <= 0.06 * sizes[split], split
    images = [str(image) for split in task.splits for image in task.rows(split)["image"]]
    assert len(images) == 1797
    pixels = task.rows("test")["image"][0]
    assert len(pixels) == len(pixels[0]) == 8
    assert 0 <= min(map(min, pixels)) < max(map(max, pixels)) <= 1
