"""Generated tasks: seeded, disjoint, and right."""

import statistics
from collections import Counter

import numpy as np
import pytest

from effitrans.errors import UsageError
from effitrans.tasks import load_task
from effitrans.tasks.generators import GENERATORS
from effitrans.tasks.generators.listops import ListOps, value, write
from effitrans.tasks.generators.mqar import MQAR
from effitrans.tasks.generators.pathfinder import Pathfinder


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
    few = {"train_rows": 50, "validation_rows": 20, "test_rows": 20} if name != "digits" else {}
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


@pytest.mark.parametrize(
    "made",
    [
        MQAR(train_rows=60),
        MQAR(train_rows=20, length=33, num_pairs=8, num_keys=8, num_values=2, power=1),
        MQAR(train_rows=5, length=1024, num_pairs=256, num_keys=4096, num_values=900),
    ],
    ids=["default", "tight", "of-the-paper"],
)
def test_mqar_asks_for_the_value_of_each_key_once(made):
    columns = made.columns("train")
    for words, tags in zip(columns["words"], columns["tags"], strict=True):
        assert len(words) == len(tags) == made.length
        opening, rest = words[: 2 * made.num_pairs], words[2 * made.num_pairs :]
        pairs = dict(zip(opening[::2], opening[1::2], strict=True))
        assert len(pairs) == made.num_pairs
        assert sorted(word for word in rest if word != ".") == sorted(pairs)
        assert tags == [None] * len(opening) + [pairs.get(word) for word in rest]


def test_mqar_asks_soon_more_often_than_late():
    def distance(power):
        rows = MQAR(power=power, train_rows=100).columns("train")["tags"]
        return np.mean([place for tags in rows for place, tag in enumerate(tags) if tag])

    assert distance(0.01) < distance(1) - 2


def test_mqar_splits_share_no_row():
    made = MQAR(length=8, num_pairs=1, train_rows=300, validation_rows=100, test_rows=100)
    rows = [tuple(words) for split in made.splits for words in made.columns(split)["words"]]
    assert len(set(rows)) == len(rows) == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 30, "num_pairs": 8}, "length 30 is below 32"),
        ({"num_keys": 3, "num_pairs": 4}, "num_keys 3 is below num_pairs 4"),
        ({"length": 4, "num_pairs": 1, "num_keys": 2, "num_values": 2}, "found no new row"),
    ],
)
def test_mqar_that_cannot_be_made_is_refused(options, message):
    task = {"name": "x", "kind": "token-classification", "inputs": "words", "target": "tags"}
    with pytest.raises(UsageError, match=message):
        load_task({**task, "data": {"generator": "mqar", **options}}).rows("train")


def _dashes(image, size):
    """The image without its dots, and the middles of the dots."""
    image = np.array(image)
    dots = [
        (row, column)
        for row in range(1, size - 1)
        for column in range(1, size - 1)
        if image[row - 1 : row + 2, column - 1 : column + 2].all()
    ]
    return image, dots


@pytest.mark.parametrize(
    "options",
    [{}, {"size": 32, "num_dashes": 6, "dash": 3, "gap": 2, "num_distractors": 3}],
    ids=["default", "of-the-arena"],
)
def test_pathfinder_dots_are_on_one_curve_if_connected(options):
    """With gaps of nothing, a curve is one connected patch, which a flood fill finds."""
    from scipy.ndimage import label

    made = Pathfinder(**{**options, "gap": 0, "train_rows": 60})
    columns = made.columns("train")
    assert sum(columns["label"]) == 30
    for image, connected in zip(columns["image"], columns["label"], strict=True):
        image, dots = _dashes(image, made.size)
        patches, _ = label(image, np.ones((3, 3)))
        # a bend next to a dot can fill a second square, on the same patch
        assert len(dots) >= 2
        assert len({int(patches[dot]) for dot in dots}) == (1 if connected else 2)
        assert set(np.unique(image)) == {0.0, 1.0}


def test_pathfinder_has_no_shorter_way():
    """Neither the distance of the dots nor the number of bright pixels tells the classes apart."""
    columns = Pathfinder(train_rows=600).columns("train")
    labels = np.array(columns["label"], dtype=bool)
    lit = np.array([np.sum(image) for image in columns["image"]])
    reach = []
    for image in columns["image"]:
        _, dots = _dashes(image, 16)
        reach.append(max(np.hypot(a[0] - b[0], a[1] - b[1]) for a in dots for b in dots))
    for clue in (lit, np.array(reach)):
        cuts = [np.mean((clue > cut) == labels) for cut in np.unique(clue)]
        assert max(max(cuts), 1 - min(cuts)) < 0.58


def test_pathfinder_that_cannot_be_made_is_refused():
    task = {"name": "x", "kind": "image-classification", "inputs": "image", "target": "label"}
    with pytest.raises(UsageError, match="do not fit into 8 x 8"):
        load_task({**task, "data": {"generator": "pathfinder", "size": 8}}).rows("train")
    with pytest.raises(UsageError, match="found no room"):
        load_task(
            {**task, "data": {"generator": "pathfinder", "size": 12, "num_dashes": 1, "dash": 14, "num_distractors": 0}}
        ).rows("train")


@pytest.mark.parametrize("name", GENERATORS)
def test_sizes_that_no_machine_holds_are_refused(name):
    """No field takes any whole number: a mistyped exponent is told before memory is taken."""
    fields = {key for key, field in GENERATORS[name].model_fields.items() if field.annotation is int}
    for field in fields:
        with pytest.raises(ValueError, match=field):
            GENERATORS[name](**{field: 10**12})
